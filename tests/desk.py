"""A page in which the plugin runs as in Obsidian: `tests/obsidian/` in a Chromium, its files, processes and addresses by this process.

The page has an address that exists nowhere: DevTools holds back whatever it asks for. What belongs to the page is answered from the
folder; `/bridge` is done here, really; everything else is refused and kept in `leaks`.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from tests import browser

PAGE = Path(__file__).parent / "obsidian"
HOME = "https://obsidian.test/"
KINDS = {".html": "text/html", ".js": "text/javascript"}
PATIENCE = 120.0  # seconds: the machine is shared


class Desk(browser.Browser):
    """One page with one plugin. Use as a context manager."""

    def __init__(self, profile: Path, vault: Path, environment: dict[str, str], data: Path) -> None:
        self.vault, self.environment, self.data = vault, environment, data
        self.leaks: list[str] = []
        self.asked: list[tuple[str, str]] = []  # of the API: method and path
        self.spawned: list[list[str]] = []
        self._children: list[tuple[subprocess.Popen[bytes], queue.Queue[tuple[str, Any]]]] = []
        self._hands = ThreadPoolExecutor(16, "desk")
        self._client = httpx.Client(trust_env=False, timeout=PATIENCE)
        super().__init__(profile, 1200, 760)
        self.call("Fetch.enable", patterns=[{"urlPattern": "*"}])

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)
        for child, _ in self._children:
            with contextlib.suppress(OSError):
                child.kill()
        self._hands.shutdown(cancel_futures=True)
        self._client.close()

    # -- what the page asks for

    def _next(self) -> dict[str, Any]:
        while True:
            message = super()._next()
            if message.get("id", 0) < 0:  # nobody waits for it
                continue
            if message.get("method") == "Fetch.requestPaused":
                self._paused(message["params"])
            return message

    def _paused(self, asked: dict[str, Any]) -> None:
        url, number = asked["request"]["url"], asked["requestId"]
        name = url.removeprefix(HOME)
        if url == HOME + "bridge":
            self._hands.submit(self._bridge, number, asked["request"].get("postData", "[]"))
        elif url.startswith(HOME) and (PAGE / name).is_file():
            self._fulfil(number, (PAGE / name).read_bytes(), KINDS[Path(name).suffix])
        else:
            if name != "favicon.ico":
                self.leaks.append(url)
            self.send(-1, "Fetch.failRequest", {"requestId": number, "errorReason": "BlockedByClient"})

    def _fulfil(self, number: str, body: bytes, kind: str) -> None:
        headers = [{"name": "Content-Type", "value": f"{kind}; charset=utf-8"}]
        answer = {"requestId": number, "responseCode": 200, "responseHeaders": headers, "body": base64.b64encode(body).decode()}
        with contextlib.suppress(OSError):  # the browser is gone
            self.send(-1, "Fetch.fulfillRequest", answer)

    def _bridge(self, number: str, call: str) -> None:
        name, *given = json.loads(call)
        try:
            answer = {"value": getattr(self, "do_" + name.replace("-", "_"))(*given)}
        except OSError as error:
            code = {"FileNotFoundError": "ENOENT", "PermissionError": "EACCES", "NotADirectoryError": "ENOTDIR"}.get(type(error).__name__)
            answer = {"error": {"message": f"{code}: {error.strerror}, {name} '{given[0]}'", "code": code, "errno": error.errno}}
        except httpx.TransportError as error:
            answer = {"error": {"message": f"net::ERR_CONNECTION_REFUSED ({type(error).__name__})"}}
        except Exception as error:  # the page must not wait for ever
            self.leaks.append(f"{call[:200]}: {error!r}")
            answer = {"error": {"message": repr(error)}}
        self._fulfil(number, json.dumps(answer).encode(), "application/json")

    # -- done for it (named in tests/obsidian/node.js)

    def do_about(self) -> dict[str, Any]:
        return {"vault": str(self.vault), "env": self.environment, "data": str(self.data)}

    def do_walk(self) -> list[tuple[str, bool, float, int]]:
        found = []
        for folder, folders, files in os.walk(self.vault):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in [*folders, *sorted(name for name in files if not name.startswith("."))]:
                path = Path(folder, name)
                with contextlib.suppress(FileNotFoundError):
                    facts = path.stat()
                    found.append((path.relative_to(self.vault).as_posix(), path.is_dir(), facts.st_mtime * 1000, facts.st_size))
        return found

    def do_exists(self, path: str) -> bool:
        return os.path.exists(path)

    def do_read(self, path: str) -> str:
        return Path(path).read_bytes().decode("utf-8", "replace")

    def do_write(self, path: str, text: str) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(text.encode("utf-8"))

    def do_access(self, path: str, mode: int) -> None:
        os.stat(path)
        if not os.access(path, mode):
            raise PermissionError(13, "permission denied", path)

    def do_stat(self, path: str) -> dict[str, Any]:
        facts, at = os.stat(path), Path(path)
        return {"size": facts.st_size, "mode": facts.st_mode, "mtimeMs": facts.st_mtime * 1000, "file": at.is_file(), "folder": at.is_dir()}

    def do_realpath(self, path: str) -> str:
        return os.path.realpath(path, strict=True)

    def do_readdir(self, path: str) -> list[str]:
        return sorted(os.listdir(path))

    def do_alive(self, pid: int) -> None:
        os.kill(pid, 0)

    def do_request(self, url: str, method: str, kind: str | None, body: str | None, headers: dict[str, str]) -> dict[str, Any]:
        self.asked.append((method, httpx.URL(url).path.removeprefix("/api/vaultllm")))
        given = headers | ({"Content-Type": kind} if kind else {})
        answer = self._client.request(method, url, content=body, headers=given)
        return {"status": answer.status_code, "headers": dict(answer.headers), "text": answer.text}

    def do_spawn(self, file: str, given: list[str], options: dict[str, Any]) -> tuple[int, int]:
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        self.spawned.append([file, *given])
        child = subprocess.Popen([file, *given], cwd=options["cwd"], env=options["env"] or self.environment, **pipes)
        said: queue.Queue[tuple[str, Any]] = queue.Queue()

        def read(name: str, pipe: Any) -> None:
            while data := pipe.read1(1 << 16):
                said.put((name, base64.b64encode(data).decode()))

        readers = [threading.Thread(target=read, args=(name, getattr(child, name)), daemon=True) for name in ("stdout", "stderr")]
        for one in readers:
            one.start()

        def end() -> None:
            for one in readers:
                one.join()
            with child:  # waits, and closes its pipes
                pass
            said.put(("close", child.returncode))

        threading.Thread(target=end, daemon=True).start()
        self._children.append((child, said))
        return len(self._children) - 1, child.pid

    def do_child_write(self, number: int, text: str) -> None:
        pipe = self._children[number][0].stdin
        assert pipe is not None
        with contextlib.suppress(BrokenPipeError, ValueError):  # it has ended
            pipe.write(text.encode())
            pipe.flush()

    def do_child_end(self, number: int) -> None:
        pipe = self._children[number][0].stdin
        assert pipe is not None
        with contextlib.suppress(BrokenPipeError):
            pipe.close()

    def do_child_kill(self, number: int, name: str) -> bool:
        self._children[number][0].send_signal(signal.Signals[name])
        return True

    def do_child_next(self, number: int) -> tuple[str, Any]:
        return self._children[number][1].get(timeout=PATIENCE)

    # -- what a user does and sees

    def start(self, plugin: Path, change: Callable[[str], str] = lambda source: source) -> None:
        """Open the page anew and load the plugin of this folder."""
        self.call("Page.navigate", url=HOME + "index.html")
        self.until("document.documentElement?.dataset.ready || ''")
        source = change((plugin / "main.js").read_text(encoding="utf-8"))
        styles = (plugin / "styles.css").read_text(encoding="utf-8") if (plugin / "styles.css").exists() else ""
        manifest = json.loads((plugin / "manifest.json").read_text(encoding="utf-8")) | {"dir": ".obsidian/plugins/vaultllm"}
        self.js(f"desk.start({json.dumps(source)}, {json.dumps(manifest)}, {json.dumps(styles)})")

    def until(self, code: str, seconds: float | None = None) -> Any:
        """The value of an expression, once it is true."""
        end = time.monotonic() + (seconds or PATIENCE)
        while not (found := self.js(f"((found) => (found instanceof Node ? true : found))({code})")):
            assert time.monotonic() < end, f"{code} stays {found!r}; {self.wrong()}; {self.text('body')[-1500:]}"
            time.sleep(0.03)
        return found

    def text(self, selector: str) -> str:
        """What stands in an element, as one reads it; empty when it is not there."""
        return self.js(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")

    def press(self, selector: str, text: str = "", *, button: str = "left", modifiers: int = 0) -> None:
        """Click the middle of an element: the first, or the first with this text; it must be what lies on top there."""
        found = f"""(() => {{
            const el = [...document.querySelectorAll({json.dumps(selector)})].find((one) => one.innerText.includes({json.dumps(text)}));
            if (!el) return null;
            el.scrollIntoView({{block: "nearest"}});
            const box = el.getBoundingClientRect();
            const [x, y] = [box.left + box.width / 2, box.top + box.height / 2];
            const top = document.elementFromPoint(x, y);
            return top && (el.contains(top) || top.contains(el)) ? [x, y] : null;
        }})()"""
        x, y = self.until(found)
        for kind in ("mousePressed", "mouseReleased"):
            self.mouse(kind, x, y, button=button, clickCount=1, modifiers=modifiers)

    def type(self, text: str) -> None:
        """Into what has the focus."""
        self.call("Input.insertText", text=text)

    def command(self, name: str) -> None:
        """By the palette, as a user."""
        self.js("desk.modals.slice().forEach((one) => one.close())")
        self.key("p", "KeyP", modifiers=2)
        self.until("document.activeElement.matches('.prompt-input')")
        self.type(name)
        self.until(f"document.querySelector('.suggestion-item.is-selected')?.innerText.includes({json.dumps(name)})")
        self.key("Enter")

    def offered(self) -> list[str]:
        """The commands that the palette offers now."""
        return self.js("Object.values(desk.commands).filter((one) => desk.can(one)).map((one) => one.id)")

    def open_note(self, path: str) -> None:
        """Click it in the list of files."""
        place = f"[...document.querySelectorAll('.files .file')].find((one) => one.dataset.path === {json.dumps(path)})"
        self.until(f"{place} && ({place}.id = 'wanted')")
        self.press("#wanted")
        self.js(f"{place}?.removeAttribute('id')")
        self.until(f"desk.active() === {json.dumps(path)}")

    def notice(self, part: str) -> str:
        """The first notice since the last call that says this."""
        code = f"desk.notices.findIndex((one) => one.includes({json.dumps(part)})) + 1"
        at = self.until(code)
        return self.js(f"desk.notices.splice(0, {at}).at(-1)")

    def wrong(self) -> list[str]:
        """What went wrong in the page: errors that nobody caught, complaints, what Obsidian has not, addresses that were asked for."""
        found = [f"missing: {one}" for one in self.js("desk.missing")] + [f"asked for {one}" for one in self.leaks]
        for event in self.events:
            method, params = event.get("method"), event.get("params", {})
            if method == "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                found.append(details.get("exception", {}).get("description", details["text"]))
            elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
                found.append(" ".join(str(one.get("value", one.get("description"))) for one in params["args"]))
            elif method == "Log.entryAdded" and params["entry"]["level"] == "error" and "favicon" not in params["entry"].get("url", ""):
                found.append(params["entry"]["text"])
        return found

    def picture(self, path: Path, width: int, height: int, instead: dict[str, str]) -> None:
        """A PNG of the window at this size, in few colours; `instead` of folders of the test it shows others."""
        import io

        from PIL import Image

        self.mouse("mouseMoved", 1, 1)
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2, mobile=False)
        self.js(f"desk.rename({json.dumps(instead)})")
        self.drawn()
        shot = self.call("Page.captureScreenshot", format="png")["data"]
        self.call("Emulation.setDeviceMetricsOverride", width=1200, height=760, deviceScaleFactor=1, mobile=False)
        drawn = Image.open(io.BytesIO(base64.b64decode(shot))).convert("RGB")
        drawn.quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)
