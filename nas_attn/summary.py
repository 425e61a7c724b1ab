"""A study in Markdown, short enough for a pull request: the answer, the front, what to know before believing it, how to get it again."""

from nas_attn import facts
from nas_attn.answer import answer, chance, placed, points
from nas_attn.caveats import caveats
from nas_attn.markdown import code, markdown
from nas_attn.page import Study
from nas_attn.subject import command

MOST = 8


def summary(study: Study) -> str:
    """The Markdown text; whatever users wrote is escaped."""
    snapshot, believed = study.snapshot, study.believed
    told = answer(snapshot, believed, study.drawing)
    parts = [f"## {markdown(told.headline)}", markdown(told.sentence), f"{code(told.command)}", _front(study)]
    warnings = caveats(snapshot, believed)
    if warnings:
        parts.append("\n".join(["To know before believing it:", "", *(f"- {markdown(text)}" for text in warnings)]))
    measured = sum(trial.kind == "measured" for trial in snapshot.trials)
    sigma = facts.sigma(snapshot)
    noise = "" if sigma is None else f" σ of the base's seeds: {sigma:.4f} mAP50-95."
    counts = f"{measured} of {len(snapshot.trials)} trials of study {code(snapshot.name)} were measured."
    parts.append(f"{counts}{noise} Made by {code(command(snapshot))}.")
    return "\n\n".join(part for part in parts if part) + "\n"


def _front(study: Study) -> str:
    if study.believed is None:
        return ""
    lines = ["| trial | what | mAP50-95 (90 %) | gain, points (90 %) | latency | beats the base |", "|---|---|---|---|---|---|"]
    for member in study.believed.front[:MOST]:
        claim, trial = member.claim, member.trial
        base = not trial.architecture.placements
        gain = "" if base else f"{points(claim.gain)} ({points(claim.gain_low)} to {points(claim.gain_high)})"
        lines.append(
            f"| {trial.number} | {markdown(placed(trial.architecture, study.drawing))} "
            f"| {claim.mean:.4f} ({claim.low:.4f} to {claim.high:.4f}) | {gain} "
            f"| {facts.latency(trial):.3f} × | {'' if base else chance(claim.beats_base)} |"
        )
    more = len(study.believed.front) - MOST
    return "\n".join([*lines, *([f"\n{more} more in recommended.csv."] if more > 0 else [])])
