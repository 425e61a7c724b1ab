"""Makes entries of the corpus from what fuzz runs saw: each input as it was found, where the command line refuses it as the parser did.

    python tests/fuzz/keep.py --out fuzz

One input, the smallest, for each kind of input, place in the package and reason; what the corpus has is left as it is. Of one rule, which
keys of a space break in the same way, no more than a few are kept.
"""

import argparse
import base64
import functools
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
os.environ.update(YOLO_OFFLINE="true", YOLO_AUTOINSTALL="false")

import yaml  # noqa: E402
from malformed import CORPUS, FUZZERS, KINDS, entries, tried  # noqa: E402
from targets import TARGETS, words  # noqa: E402

LARGEST_BYTES = 3000
MOST_OF_A_RULE = 4
HEAD = "# Found by fuzzers, and kept by tests/fuzz/keep.py as they were found: `from` says by which.\nentries:\n"
Key = tuple[str, str, str]


def main() -> None:
    """Reads ledgers, tries their inputs on the command line, writes what is new."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("fuzz"), help="the folder of the fuzz runs")
    out = parser.parse_args().out
    kept = {kind: [entry for entry in entries(kind) if entry["from"] in FUZZERS] for kind in KINDS}
    seen = {key for kind in KINDS for entry in kept[kind] if (key := _key(kind, entry)) is not None}
    rules = Counter(_rule(key) for key in seen)
    for kind, entry in _candidates(out):
        key = _key(kind, entry)
        if key is None or key in seen or rules[_rule(key)] >= MOST_OF_A_RULE:
            continue
        seen.add(key)
        rules[_rule(key)] += 1
        kept[kind].append(_told(entry, key, {other["name"] for other in entries(kind) + kept[kind]}))
    (CORPUS / "found").mkdir(exist_ok=True)
    for kind in KINDS:
        lines = [f"- {_line(kind, entry)}\n" for entry in kept[kind]]
        (CORPUS / "found" / f"{kind}.yaml").write_text(HEAD + "".join(lines), encoding="utf-8")
        sys.stdout.write(f"{kind}: {len(lines)}, {dict(Counter(entry['from'] for entry in kept[kind]))}\n")


def _candidates(out: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Refused inputs as entries, the smallest first."""
    found: list[tuple[int, str, str, dict[str, Any]]] = []
    for file in sorted(out.glob("*-*.json")):
        name, _, engine = file.stem.partition("-")
        for verdict in json.loads(file.read_text())["seen"].values():
            content = base64.b64decode(verdict["input"])
            if verdict["kind"] == "refused" and len(content) <= LARGEST_BYTES and (entry := _entry(name, engine, content)):
                found.append((len(content), engine, TARGETS[name].kind, entry))
    for _, _, kind, entry in sorted(found, key=lambda one: one[:3]):
        yield kind, entry


def _entry(name: str, engine: str, content: bytes) -> dict[str, Any] | None:
    target = TARGETS[name]
    try:
        text: str | None = content.decode()
    except UnicodeDecodeError:
        text = None
    if target.kind == "commands":
        line = words(content)
        return {"from": engine, "command": line} if text is not None and _is_plain(line) else None
    held = {"text": text} if text is not None and _is_plain(text) else {"base64": base64.b64encode(content).decode()}
    command = list(target.command) or _shared(target.kind)["command"]
    return {"from": engine, "command": command, "file": target.file, **held}


def _is_plain(value: Any) -> bool:
    """Whether a YAML of the corpus can hold it as it is, for people to read."""
    try:
        flat = "".join(value) if isinstance(value, list) else value
        return all(sign.isprintable() or sign in "\n\t" for sign in flat) and yaml.safe_load(yaml.safe_dump(value)) == value
    except (yaml.YAMLError, UnicodeError):
        return False


def _key(kind: str, entry: dict[str, Any]) -> Key | None:
    """What tells a refusal from others; None where the command line does not refuse in one line, or leaves something behind."""
    trial = tried(entry)
    outcome = trial.outcome
    if outcome.code != 2 or len(outcome.lines) != 1 or trial.changed or not outcome.lines[0].startswith("error: "):
        return None
    entry.setdefault("message", outcome.lines[0].removeprefix("error: "))
    return kind, outcome.place, outcome.reason


def _rule(key: Key) -> Key:
    """A key without the name of what breaks the rule."""
    kind, place, reason = key
    return kind, place, re.sub(r"^(\S+: )?[\w.]+: |; (see|write) .*", "", reason)


def _told(entry: dict[str, Any], key: Key, taken: set[str]) -> dict[str, Any]:
    """The entry with its name, which is the reason, and the words that its message must hold."""
    reason = re.sub(r"^\S+\.(yaml|txt|csv|pt): ", "", key[2]).rstrip(". ")
    base = re.split(r"; |\. ", reason)[0][:90].strip()
    name, number = base, 2
    while name in taken:
        name, number = f"{base} ({number})", number + 1
    return {"name": name, **entry, "names": _names(entry)}


def _names(entry: dict[str, Any]) -> list[str]:
    """The file, the line, the key and the value, as far as the message names them."""
    message = entry["message"]
    patterns = (
        r"line \d+",
        r"row \d+",
        r"`[^`/]{1,40}`",
        r"(?<=yaml: )[\w.]+(?=: )",
        r"(?:got|is) ([^;/]{1,40}?)(?=[;,.]? )",
        r"--[a-z-]+",
    )
    found = [match[1] if match.re.groups else match[0] for pattern in patterns if (match := re.search(pattern, message))]
    file = [Path(entry["file"]).name] if "file" in entry and Path(entry["file"]).name in message else []
    names = list(dict.fromkeys([*file, *found]))
    return names or [message.split(";")[0][:40]]


def _line(kind: str, entry: dict[str, Any]) -> str:
    """One line of YAML; command and file where they are not those of the kind."""
    shared = _shared(kind)
    kept = {
        key: value for key, value in entry.items() if key != "message" and not (key in ("command", "file") and shared.get(key) == value)
    }
    return yaml.safe_dump(kept, sort_keys=False, default_flow_style=True, width=10**6).strip()


@functools.cache
def _shared(kind: str) -> dict[str, Any]:
    """The command and the file of a kind."""
    return {key: value for key, value in yaml.safe_load((CORPUS / f"{kind}.yaml").read_text(encoding="utf-8")).items() if key != "entries"}


if __name__ == "__main__":
    main()
