"""The servers that the browser looks at: real ones over the fake engine, with adapters, keys and a little traffic.

    python tests/browser/servers.py FOLDER

Prints one line of JSON with what the tests need, and serves until its standard input ends.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from api.live_server import BASE, LiveServer, Setup
from api.peft_files import make_adapter
from livery.engine.base import GenerationRequest
from livery.engine.fake import Behaviour
from livery.models import resolve_model
from livery.text import Tokenizer

WORDS = {
    "base": "The sea is a large body of salt water that covers most of the Earth and shapes its weather.",
    "other": "Arr, the sea be a wild old lady, matey: she rocks ye to sleep, and she never forgives a fool!",
}
TOKENS_PER_S = 40
NAMES = (
    *("pirate", "shop/support-de", "shop/support-en", "shop/returns", "legal/contracts", "legal/privacy"),
    *(
        "team-a/sql",
        "team-a/sql-strict",
        "poet",
        "haiku",
        "summaries",
        "medical/notes",
        "medical/letters",
        "code/review",
    ),
    *("code/commit-messages", "games/npc-baker", "games/npc-guard", "travel/city-guide", "kids/stories", "sports/live"),
    *("news/headlines", "news/long-reads", "science/abstracts", "mail/polite", "mail/short", "recipes", "music/lyrics"),
)
TRAFFIC = (
    *(("pirate", 24), ("shop/support-de", 18), ("team-a/sql", 9), ("poet", 5), (BASE, 4), ("legal/contracts", 3)),
    *(("haiku", 2), ("code/review", 2), ("medical/notes", 1), ("shop/support-en", 7)),
)


def speaking(tokenizer: Tokenizer) -> Callable[[GenerationRequest], list[int]]:
    """The same words over and over, the base its own and adapters theirs, up to what was asked for."""
    said = {who: tokenizer.encode(f" {words}") for who, words in WORDS.items()}

    def script(request: GenerationRequest) -> list[int]:
        words = said["base" if request.adapter is None else "other"]
        return (words * (request.sampling.max_tokens // len(words) + 1))[: request.sampling.max_tokens]

    return script


def begin(folder: Path, tokenizer: Tokenizer, api_key: str | None, **adapters: Path) -> LiveServer:
    """A server whose engine says some tokens a second, with these adapters in its folder."""
    folder.mkdir(parents=True)
    for name, path in adapters.items():
        (folder / "adapters" / ".pool").mkdir(parents=True, exist_ok=True)
        path.rename(folder / "adapters" / ".pool" / name)
    behaviour = Behaviour(script=speaking(tokenizer), stepped=True)
    server = LiveServer(Setup(behaviour=behaviour, api_key=api_key, max_model_len=4096), tokenizer, folder)
    server.start()

    def tick() -> None:
        pause = threading.Event()
        while not pause.wait(1 / TOKENS_PER_S):
            server.step(server.engine.open_requests)

    threading.Thread(target=tick, daemon=True).start()
    return server


def fill(server: LiveServer) -> None:
    """Adapters with a history, and requests that went well and badly."""
    from livery.adding import AddOptions

    for number, name in enumerate(NAMES):
        server.call(server.management.put(name, f".pool/{('one', 'two', 'three')[number % 3]}", AddOptions()))
    server.call(server.management.put("pirate", ".pool/two", AddOptions(pinned=True)))
    server.call(server.management.pin("team-a/sql", True))
    client = server.client()
    threads = []
    for name, times in TRAFFIC:
        for turn in range(min(times, 6)):
            message = {"role": "user", "content": f"Number {turn}"}
            threads.append(
                threading.Thread(
                    target=client.chat.completions.create,
                    kwargs={"model": name, "messages": [message], "max_tokens": 4 + 3 * turn},
                )
            )
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main(folder: Path) -> None:
    tokenizer = Tokenizer.from_directory(resolve_model("smollm2-135m-instruct").path)
    saved = {
        name: make_adapter(folder / name, seed=seed, rank=2 << seed)
        for seed, name in enumerate(("one", "two", "three"))
    }
    upload = make_adapter(folder / "upload", seed=7)
    opened = begin(folder / "open", tokenizer, None, **saved)
    fill(opened)
    keyed = begin(folder / "keyed", tokenizer, "sk-operator")
    facts = {
        "url": opened.url,
        "keyed": keyed.url,
        "key": "sk-operator",
        "user": keyed.make_key("acme"),
        "base": BASE,
        "python": sys.executable,
        "upload": [str(upload / name) for name in ("adapter_config.json", "adapter_model.safetensors")],
    }
    print(json.dumps(facts), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
