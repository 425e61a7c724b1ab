"""What `verify` decides before its first training: arms, the recipe that they share, seeds, images, and the primary contrast."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nas_attn import data, facts, pick, posterior
from nas_attn.architecture import Architecture
from nas_attn.errors import DataError, InputError, StudyError, nearest
from nas_attn.full import WEIGHTS, file_fingerprint
from nas_attn.outcome import Measured, Outcome, Recipe, Snapshot, Stopped, Trial
from nas_attn.setup import Setup, code_version, require_own

BASE, EXTRA, WIDER, MEMBERS = "base", "extra", "wider", "members"
ARMS = (BASE, EXTRA, WIDER, MEMBERS)
SEEDS = 5
MOST_MEMBERS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One thing that is trained in full with every seed.

    `name` is `base`, `extra` (the base for longer), `wider` or `trial-<number>`; `latency_ratio` is to the base, `width` the multiplier of
    a wider base.
    """

    name: str
    architecture: Architecture
    epochs: int
    trial: int | None = None
    width: float | None = None
    latency_ratio: float | None = None
    params_m: float | None = None

    def __str__(self) -> str:
        if self.trial is not None:
            return f"trial {self.trial}"
        texts = {BASE: "the base", EXTRA: f"the base for {self.epochs} epochs", WIDER: f"the base at width {self.width or 0:g}"}
        return texts.get(self.name, self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a user may choose; None takes the base fit's value, or for `extra_epochs` all that the search trained."""

    seeds: int = SEEDS
    epochs: int | None = None
    imgsz: int | None = None
    batch: int | None = None
    lr0: float | None = None
    extra_epochs: int | None = None
    members: int = MOST_MEMBERS
    trials: tuple[int, ...] = ()
    arms: tuple[str, ...] = ARMS


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """All that is decided before the first training. `pick` is the member of the primary contrast, `wider` whether it has a wider rival.

    `train` and `val` are the images; `setup` is what workers are told, `fit` what the fit of the base gave, for deadlines.
    """

    folder: Path
    setup: Setup
    recipe: Recipe
    seeds: int
    arms: tuple[Arm, ...]
    pick: Trial
    wider: bool
    train: tuple[str, ...]
    val: tuple[str, ...]
    fit: Mapping[str, Any]
    protocol: Mapping[str, str]
    notes: tuple[str, ...]

    @property
    def trainings(self) -> int:
        """How many full trainings there are, the wider base's included."""
        return self.seeds * (len(self.arms) + self.wider)

    @property
    def epochs(self) -> int:
        """How many epochs they are in all."""
        return self.seeds * (sum(arm.epochs for arm in self.arms) + self.wider * self.recipe.epochs)


def members(snapshot: Snapshot, count: int) -> tuple[Trial, ...]:
    """At most `count` architectures of the recommended front (of the observed one where there are too few trials for a model), without
    the base, the pick of the primary contrast first: the best, or where that is the base the likeliest to beat it. The others follow
    by how likely they are on the front, or by their score.
    """
    believed = posterior.believe(snapshot)
    if believed is not None:
        contenders = [m for m in believed.members if m.trial.architecture.placements]
        front = [m for m in contenders if m.expected] or contenders
        front.sort(key=lambda m: (-m.claim.non_dominated, m.trial.number))
        others = [m.trial for m in front]
        likeliest = min(front, key=lambda m: (-m.claim.beats_base, m.trial.number)).trial if front else None
    else:
        observed = [trial for trial in facts.front_trials(snapshot) if trial.architecture.placements]
        likeliest = observed[-1] if observed else None
        others = sorted(observed, key=lambda t: -(facts.metric(t, "map50_95") or 0.0))
    if likeliest is None:
        return ()
    best = pick.pick(snapshot, "best").trial
    first = best if best.architecture.placements else likeliest
    return (first, *(t for t in others if t.number != first.number))[:count]


def searched_epochs(snapshot: Snapshot) -> int:
    """All epochs that the search trained: of every trial and seed the longest training (rungs go on from each other), and the controls."""
    longest: Counter[tuple[int, int]] = Counter()
    for trial in snapshot.trials:
        for job, outcome in trial.results:
            longest[trial.number, job.seed] = max(longest[trial.number, job.seed], _epochs(outcome))
    return longest.total() + sum(_epochs(outcome) for trial in snapshot.trials for _, _, outcome in trial.controls)


def _epochs(outcome: Outcome) -> int:
    return len(outcome.curve) if isinstance(outcome, Measured | Stopped) else 0


def prepare(snapshot: Snapshot, setup: Setup, data_yaml: Path, options: Options, out: Path) -> Verification:
    """Decide what is trained, on which images, by which recipe; nothing is written yet.

    Raises:
        InputError: options that cannot be, a front without a member, or modules of the user's that were not imported.
        DataError: another data set than the study's.
        StudyError: a study without a fitted base.
    """
    _check(options)
    setup = _in_folder(setup)
    chosen = _chosen(snapshot, options)
    found = data.load(data_yaml)
    notes = _same_data(setup, found)
    weights = Path(setup.folder) / "base" / WEIGHTS
    if not weights.is_file() or snapshot.fit is None:
        raise StudyError(f"Every arm starts from the fitted base, but {weights} is not there; search first.")
    recipe = _recipe(snapshot, setup, found, options, file_fingerprint(weights))
    extra = options.extra_epochs if options.extra_epochs is not None else searched_epochs(snapshot)
    costs = facts.base_trial(snapshot)
    params_m = costs.cost.params_m if costs and costs.cost else None
    base = Arm(name=BASE, architecture=Architecture(setup.base), epochs=recipe.epochs, latency_ratio=1.0, params_m=params_m)
    arms = [base]
    if MEMBERS in options.arms:
        arms += [_member(trial, recipe.epochs) for trial in chosen]
    if EXTRA in options.arms:
        arms.append(replace(base, name=EXTRA, epochs=recipe.epochs + extra))
    return Verification(
        folder=out.resolve() / recipe.key(),
        setup=setup,
        recipe=recipe,
        seeds=options.seeds,
        arms=tuple(arms),
        pick=chosen[0],
        wider=WIDER in options.arms,
        train=found.train,
        val=found.val,
        fit=snapshot.fit,
        protocol=_protocol(snapshot, setup, recipe, options, found, extra),
        notes=tuple(notes),
    )


def _check(options: Options) -> None:
    for name in options.arms:
        if name not in ARMS:
            raise InputError(f"`--arms` must be some of {','.join(ARMS)}, but got {name!r}. {nearest(name, ARMS)}")
    if not {BASE, MEMBERS} <= set(options.arms):
        raise InputError(f"`--arms` must hold base and members, which everything is about, but got {','.join(options.arms)}.")
    least = {"seeds": 1, "epochs": 1, "imgsz": 32, "batch": 1, "members": 1, "extra_epochs": 0}
    for name, value in asdict(options).items():
        if name in least and value is not None and value < least[name]:
            raise InputError(f"`--{name.replace('_', '-')}` must be at least {least[name]}, but got {value}.")
    if options.lr0 is not None and not options.lr0 > 0:
        raise InputError(f"`--lr0` must be positive, but got {options.lr0}.")


def _chosen(snapshot: Snapshot, options: Options) -> tuple[Trial, ...]:
    by_number = {trial.number: trial for trial in snapshot.trials}
    for number in options.trials:
        if number not in by_number or not by_number[number].architecture.placements:
            known = [n for n, trial in by_number.items() if trial.architecture.placements]
            raise InputError(f"`--trial` must be a trial other than the base, one of {known}, but got {number}; see trials.csv.")
    found = tuple(by_number[n] for n in dict.fromkeys(options.trials)) or members(snapshot, options.members)
    if not found:
        raise InputError("Keep the base: the front holds nothing else, so that there is nothing to verify; --trial N takes any trial.")
    return found


def _same_data(setup: Setup, found: data.DataSet) -> list[str]:
    """Notes on the data, after checking that it is the study's."""
    if found.names != setup.names:
        raise DataError(f"`--data` must be the study's data, of classes {list(setup.names)}, but it has {list(found.names)}.")
    lists = [setup.train_list, *([] if setup.score_on == "val" else [setup.val_list])]
    searched = {Path(line).name for file in lists for line in Path(file).read_text(encoding="utf-8").splitlines()}
    theirs = {Path(image).name for image in found.train}
    if searched != theirs:
        raise DataError(
            f"`--data` must be the study's data, but {len(searched ^ theirs)} of its {len(theirs)} training images differ from the "
            f"{len(searched)} of the search (first: {sorted(searched ^ theirs)[0]})."
        )
    notes = []
    if setup.score_on == "val":
        notes.append("The search itself scored on val (`--score-on val`): what follows is not untouched by selection.")
    if shared := len(set(found.train) & set(found.val)):
        notes.append(f"{shared} of the {len(found.val)} images of val are also trained on: scores on them say little.")
    return notes


def _recipe(snapshot: Snapshot, setup: Setup, found: data.DataSet, options: Options, base: str) -> Recipe:
    require_own(setup)
    fit = dict(setup.fit)
    schedule = {name: fit.pop(name) for name in ("epochs", "imgsz", "batch", "lr0")}
    schedule |= {name: value for name in schedule if (value := getattr(options, name)) is not None}
    if not schedule["epochs"]:
        raise InputError("A base that was taken as its weights are (base_fit.epochs: 0) has no epochs to take over; give --epochs.")
    scales = [job.recipe.new_lr_scale for trial in snapshot.trials for job, _ in trial.results]
    labels = [list(data.read_all_labels(images, len(found.names)).values()) for images in (found.train, found.val)]
    return Recipe(
        **schedule,
        new_lr_scale=scales[0] if scales else 1.0,
        score_on="val",
        data="-".join(data.fingerprint(items, found.names) for items in labels),
        base=base,
        code=code_version(),
        args=tuple(sorted(fit.items())),
    )


def _member(trial: Trial, epochs: int) -> Arm:
    ratio = facts.metric(trial, "latency_ratio")
    params_m = trial.cost.params_m if trial.cost else None
    name = f"trial-{trial.number}"
    return Arm(name=name, architecture=trial.architecture, epochs=epochs, trial=trial.number, latency_ratio=ratio, params_m=params_m)


def _protocol(snapshot: Snapshot, setup: Setup, recipe: Recipe, options: Options, found: data.DataSet, extra: int) -> dict[str, str]:
    hours = sum(trial.seconds for trial in snapshot.trials) / 3600
    return {
        "study": f"{snapshot.name}, base {setup.base}, {len(snapshot.trials)} trials, "
        f"{searched_epochs(snapshot)} epochs in {hours:.2f} h of training",
        "data": f"{found.yaml_file}: all {len(found.train)} training images, scored on the {len(found.val)} of its own val split",
        "recipe": f"{recipe.epochs} epochs at {recipe.imgsz} px, batch {recipe.batch}, AdamW, lr0 {recipe.lr0:g} falling linearly to 1 % "
        f"of it, inserted modules {recipe.new_lr_scale:g} times that, for every arm; averaged weights, scored after the last epoch",
        "start": f"the study's fitted base ({recipe.base}) for every arm but the wider base, whose fit followed the same recipe",
        "seeds": f"{options.seeds}, the same for every arm: images, order, augmentation; new modules' weights are drawn from them",
        EXTRA: f"the base with {extra} epochs more, by default all that the search trained" if EXTRA in options.arms else "not trained",
        "code": recipe.code,
        "device": setup.device,
        "recipe's folder": recipe.key(),
    }


def _in_folder(setup: Setup) -> Setup:
    """A setup whose image lists are those of its folder, wherever the study has been moved to."""
    here = Path(setup.folder) / "lists"
    train, val = here / Path(setup.train_list).name, here / Path(setup.val_list).name
    for file in (train, val):
        if not file.is_file():
            raise StudyError(f"A study's folder holds its image lists, but {file} is not there; give the folder that the search wrote.")
    return replace(setup, train_list=str(train), val_list=str(val))
