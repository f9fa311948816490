"""Draw what `vaultllm demo` prints at its end as an SVG.

vaultllm demo --json > demo.json && python docs/picture.py demo.json docs/demo.svg
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from rich.console import Console

from vaultllm import training_views

result = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
home = str(Path(result["folder"]).parent)
result["table"] = [[str(cell).replace(home + "/", "") for cell in row] for row in result["table"]]
result["lines"] = [line.replace(home + "/", "") for line in result["lines"]]
with Path("/dev/null").open("w") as nowhere:
    console = Console(record=True, width=118, file=nowhere, highlight=False)
    for answer in result["answers"]:  # as `vaultllm ask` shows them
        console.print(f"[bold]{answer['question']}[/bold]")
        for source in answer["sources"][:1]:
            console.print(f"  → {source['quote'].replace('**', '')}\n    [dim]{source['path']}:{source['lines'][0]}[/dim]")
    console.print()
    console.print(training_views.demo(result))
picture = console.export_svg(title="vaultllm demo")
picture = re.sub(r"@font-face \{.*?\}", "", picture, flags=re.DOTALL)  # a picture must not call anybody
Path(sys.argv[2]).write_text(picture, encoding="utf-8")
