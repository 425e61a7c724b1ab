"""Fuzzes what reads users' files, and keeps what it found: each way in which an input is refused or breaks a parser, minimized.

    python tests/fuzz/fuzz_parsers.py --target space --engine hypothesis --minutes 3 --out fuzz
    python tests/fuzz/fuzz_parsers.py --target space --engine atheris --minutes 3 --out fuzz
    python tests/fuzz/fuzz_parsers.py --show --out fuzz

A parser must return or raise InputError with printable lines that name the file, within five seconds of its own time; all else is `broken`.
The same command goes on where the last one ended. `hypothesis` edits good inputs (a value, a key, a line, a byte); `atheris` (libFuzzer,
`pip install nas-attn[fuzz]`) is guided by the branches of `nas_attn` and PyYAML that an input reaches. Entries of `tests/corpus` that say
`from: found` came from such runs. Exit code 1 if anything is broken.
"""

import argparse
import contextlib
import functools
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

ENGINES = ("hypothesis", "atheris")
MEMORY_BYTES = 12 << 30
"""Of addresses, which torch alone takes several GiB of: a parser that asks for more than that breaks with MemoryError."""
SAVE_EVERY = 200
EXAMPLES = 400


def main() -> None:
    """Parse, fuzz, say what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="space")
    parser.add_argument("--engine", choices=ENGINES, default="hypothesis")
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--out", type=Path, default=Path("fuzz"))
    parser.add_argument("--show", action="store_true", help="only print what earlier runs saw")
    options = parser.parse_args()
    if not options.show:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        options.out.mkdir(parents=True, exist_ok=True)
        {"hypothesis": run_hypothesis, "atheris": run_atheris}[options.engine](options.target, options.minutes * 60, options.out)
    sys.exit(show(options.out))


def show(out: Path) -> int:
    """One line a verdict; 1 if any is `broken`."""
    broken = 0
    for file in sorted(out.glob("*.json")):
        kept = json.loads(file.read_text())
        bad = [entry for entry in kept["seen"].values() if entry["kind"] == "broken"]
        broken += len(bad)
        sys.stdout.write(f"{file.stem}: {kept['executions']} executions, {kept['seconds']:.0f} s, {len(kept['seen'])} verdicts\n")
        for entry in bad:
            sys.stdout.write(f"  broken: {entry['reason']}: {entry['message'][:120]}\n")
    return 1 if broken else 0


def run_hypothesis(name: str, seconds: float, out: Path) -> None:
    """Rounds of edited inputs, each from its own seed; Hypothesis shrinks what breaks."""
    import hypothesis
    from edits import inputs
    from ledger import BROKEN, Ledger, judge
    from targets import TARGETS

    target, ledger = TARGETS[name], Ledger.open(out / f"{name}-hypothesis.json")
    seeds = target.seeds()
    until = time.monotonic() + seconds

    class Broken(Exception):  # noqa: N818 - a verdict, which Hypothesis shrinks
        pass

    with _folder(target.prepare) as folder:
        while time.monotonic() < until:
            ledger.rounds += 1
            known = {reason for reason, entry in ledger.seen.items() if entry["kind"] == BROKEN}

            @hypothesis.seed(ledger.rounds)
            @hypothesis.settings(max_examples=EXAMPLES, database=None, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
            @hypothesis.given(inputs(seeds))
            def one(content: bytes) -> None:
                verdict = judge(target, folder, content)
                ledger.note(verdict, content)
                if verdict is not None and verdict.kind == BROKEN and verdict.reason not in known:  # noqa: B023 - called in this round only
                    raise Broken(verdict.reason)

            with contextlib.suppress(Broken, hypothesis.errors.Flaky, ExceptionGroup):
                one()
            ledger.save()
        ledger.shrink(functools.partial(judge, target, folder))
        ledger.save()


def run_atheris(name: str, seconds: float, out: Path) -> None:
    """libFuzzer over the instrumented parsers; its own corpus lies beside the ledger, so that a later run goes on from it."""
    try:
        import atheris
    except ImportError:
        sys.exit("Coverage-guided fuzzing needs atheris, but it is not installed; run: pip install 'nas-attn[fuzz]'")
    with atheris.instrument_imports(include=["nas_attn", "yaml"]):
        from ledger import Ledger, judge
        from targets import TARGETS

    target, ledger = TARGETS[name], Ledger.open(out / f"{name}-atheris.json")
    corpus = out / f"{name}-corpus"
    corpus.mkdir(exist_ok=True)
    for number, content in enumerate(target.seeds()):
        (corpus / f"seed-{number}").write_bytes(content)
    words = out / f"{name}.dict"
    words.write_text(_dictionary())
    until = time.monotonic() + seconds
    with _folder(target.prepare) as folder:

        def one(content: bytes) -> None:
            if time.monotonic() > until:  # libFuzzer ends the process without a word to Python
                ledger.shrink(functools.partial(judge, target, folder))
                ledger.save()
                show(out)
                sys.stdout.flush()
                os._exit(0)
            if ledger.note(judge(target, folder, content), content) or ledger.executions % SAVE_EVERY == 0:
                ledger.save()

        arguments = [
            f"-timeout={int(seconds) + 3600}",
            "-rss_limit_mb=0",
            "-max_len=4096",
            "-verbosity=0",
            f"-artifact_prefix={corpus}/",
            f"-dict={words}",
        ]
        atheris.Setup([sys.argv[0], *arguments, str(corpus)], one)
        atheris.Fuzz()


def _dictionary() -> str:
    from edits import HOSTILE

    words = (word for word in HOSTILE if 0 < len(word) <= 64)
    return "".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in words)


@contextlib.contextmanager
def _folder(prepare: Callable[[Path], None]):  # type: ignore[no-untyped-def]
    with tempfile.TemporaryDirectory(prefix="nas-attn-fuzz-") as name:
        prepare(Path(name))
        yield Path(name)


if __name__ == "__main__":
    main()
