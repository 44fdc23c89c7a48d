"""A small recipe over a graph of made-up cities, and a chat server's answer, for tests of whole runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

RECIPE = """
name = "cities"
task = "extraction"
seed = 3
shard_rows = {shard_rows}
[data]
real = "real.jsonl"
checker_rows = 10
selection_rows = 5
[sample]
graph = "{folder}/triples.tsv"
samples = {samples}
[generate]
{generate}
[check]
min_mention_recall = 0.0
drop_truncated = false
near_duplicate = 1.0
leak_targets = false
"""


@pytest.fixture(scope="session")
def city_recipe() -> Callable[..., Path]:
    """Writes a recipe with its data into a folder; ``generate`` is that section's text."""

    def write(folder: Path, generate: str, *, samples: int, shard_rows: int) -> Path:
        edges = [f"City {i}\tcountry\tLand {i % 7}" for i in range(300)]
        (folder / "triples.tsv").write_text("subject\tpredicate\tobject\n" + "\n".join(edges) + "\n")
        rows = []
        for i in range(40):
            names = {"subject": f"Town {i}", "predicate": "country", "object": "Land 1"}
            triplet = {role: {"surfaceform": name, "uri": name} for role, name in names.items()}
            rows.append({"text": f"Town {i}.", "triplets": [triplet]})
        (folder / "real.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        text = RECIPE.format(folder=folder, generate=generate, samples=samples, shard_rows=shard_rows)
        (folder / "recipe.toml").write_text(text)
        return folder / "recipe.toml"

    return write


@pytest.fixture(scope="session")
def send_chat() -> Callable[[BaseHTTPRequestHandler, str], None]:
    """Sends a text as an OpenAI-compatible server does."""

    def send(handler: BaseHTTPRequestHandler, text: str) -> None:
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
        body = {"id": "a", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
        data = json.dumps(body | {"usage": usage}).encode()
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    return send
