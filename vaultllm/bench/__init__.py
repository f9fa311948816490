"""How well the memory finds, measured on anyone's data: questions with known evidence, and wikilinks that were hidden.

Everything goes through the real `steps.ingest` and `recall.ranked`, on a state folder that is thrown away: neither the vault
nor its own state is touched. Knows nothing about terminals; results are plain data, `lines` shows them.
"""

from vaultllm.bench.hidden import links_bench as links_bench
from vaultllm.bench.recalled import ks_of as ks_of
from vaultllm.bench.recalled import recall_bench as recall_bench
from vaultllm.bench.recalled import tune as tune
from vaultllm.bench.recalled import workspace_of as workspace_of
from vaultllm.bench.shown import lines as lines
from vaultllm.bench.shown import plot as plot
