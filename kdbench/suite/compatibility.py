"""Conditions that a term may put on the pair of networks, checked before anything runs.

A term names its conditions in ``requires``. Each is a function of student, teacher and the term's hyper-parameters that
returns what is wrong, or None. Beside the hyper-parameters stand, under names of their own, the ``image_size`` that
the student sees, in pixels, and the ``fraction`` of them that it learns from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from kdbench.catalogue.networks import NetworkInfo
from kdbench.catalogue.terms import term
from kdbench.suite.networks import info
from kdbench.suite.specs import DatasetSpec, Network, Scenario, WeightedTerm


Condition = Callable[[NetworkInfo, NetworkInfo, dict[str, Any]], str | None]


def incompatibilities(
    student: Network,
    teacher: Network,
    terms: tuple[WeightedTerm, ...],
    nodes: tuple[int | None, int | None] = (None, None),
    image_size: int = 32,
    fraction: float = 1.0,
) -> list[str]:
    """Return why a method cannot train a pair of networks; an empty list if it can.

    nodes: the widths of the node embeddings that student and teacher get; None: they show their own embedding
    """
    reasons = []
    images = {"image_size": image_size, "fraction": fraction}
    ours, theirs = (
        replace(info(network), embedding=node) if node else info(network)
        for network, node in zip((student, teacher), nodes, strict=True)
    )
    for use in terms:
        facts = term(use.name)
        options = {key: hyper.default for key, hyper in facts.hyperparameters.items()} | use.hyperparameters | images
        for name in facts.requires:
            reason = CONDITIONS[name](ours, theirs, options)
            if reason:
                reasons.append(f"{use.name} {reason}")
    return reasons


def equal_embeddings(student: NetworkInfo, teacher: NetworkInfo, options: dict[str, Any]) -> str | None:
    """Both embeddings have one width."""
    if student.embedding == teacher.embedding:
        return None
    return (
        f"compares the embeddings themselves, but {student.name} shows {student.embedding} values and {teacher.name} "
        f"{teacher.embedding}: give both a node embedding (strategy sequential or simultaneous, under protocol ega or "
        "{base: …, node_embedding: 256})"
    )


def layer_exists(student: NetworkInfo, teacher: NetworkInfo, options: dict[str, Any]) -> str | None:
    """The feature map ``layer`` exists in both networks."""
    for net in (student, teacher):
        if not net.features:
            return f"reads layer {options['layer']}, but {net.name} exposes no feature maps, only its embedding"
        if not 0 <= options["layer"] < len(net.features):
            return f"reads layer {options['layer']}, but {net.name} has the layers 0 to {len(net.features) - 1}"
    return None


def feature_maps(student: NetworkInfo, teacher: NetworkInfo, options: dict[str, Any]) -> str | None:
    """Both networks expose the map of a stage, beyond the stem's."""
    for net in (student, teacher):
        if len(net.features) < 2:
            exposed = "the stem's map alone" if net.features else "no feature maps, only its embedding"
            return f"reads the stages' feature maps, but {net.name} exposes {exposed}"
    return None


def equal_maps_without_regressor(student: NetworkInfo, teacher: NetworkInfo, options: dict[str, Any]) -> str | None:
    """Without a regressor, the two maps of ``layer`` must have the same channels and size."""
    if options["regressor"] or layer_exists(student, teacher, options):
        return None
    ours, theirs = student.features[options["layer"]], teacher.features[options["layer"]]
    if tuple(ours) == tuple(theirs):
        return None
    return (
        f"without a regressor needs equal maps, but layer {options['layer']} has {ours[0]} channels at stride {ours[1]} "
        f"in {student.name} and {theirs[0]} at stride {theirs[1]} in {teacher.name}"
    )


def layer_pair_exists(student: NetworkInfo, teacher: NetworkInfo, options: dict[str, Any]) -> str | None:
    """A fixed pair of stages names an existing stage of each network, counted from 1."""
    chosen = {"student_layer": student, "teacher_layer": teacher}
    given = [key for key in chosen if options[key] is not None]
    if len(given) == 1:
        (missing,) = chosen.keys() - given
        return f"fixes {given[0]} but no {missing}: set both or neither"
    for key in given:
        last = len(chosen[key].features) - 1
        if not 1 <= options[key] <= last:
            return f"reads {key} {options[key]}, but {chosen[key].name} has the layers 1 to {last}"
    return None


def equal_levels(student: NetworkInfo, teacher: NetworkInfo, options: dict[str, Any]) -> str | None:
    """Both networks expose stages, and equally many."""
    if reason := feature_maps(student, teacher, options):
        return reason
    ours, theirs = len(student.features) - 1, len(teacher.features) - 1
    if ours == theirs:
        return None
    return f"pairs the stages one by one, but {student.name} has {ours} and {teacher.name} has {theirs}"


def sides_within_reach(student: NetworkInfo, teacher: NetworkInfo, options: dict[str, Any]) -> str | None:
    """A stage of the student is as large as the teacher's, larger, or exactly half as large."""
    for level, (ours, theirs) in enumerate(zip(student.features, teacher.features, strict=False)):
        if level and ours[1] > theirs[1] and (ours[1] != 2 * theirs[1] or options["image_size"] % ours[1]):
            return (
                f"can double the student's map but no more, and stage {level} of {student.name} is at 1/{ours[1]} of the "
                f"image's size, {options['image_size']} pixels, that of {teacher.name} at 1/{theirs[1]}"
            )
    return None


def equal_channels(student: NetworkInfo, teacher: NetworkInfo, options: dict[str, Any]) -> str | None:
    """Stem and stages have the same channels in both networks."""
    ours, theirs = ("-".join(str(channels) for channels, _ in net.features) or "no maps" for net in (student, teacher))
    if ours == theirs:
        return None
    return f"needs equal channels, but {student.name} has {ours} and {teacher.name} has {theirs}"


def matched_levels(ours: Sequence[tuple[int, int]], theirs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Pairs of stages of one size of which the teacher's has as many channels or more, as indices.

    Each of the student's takes the first that lies deeper than the one taken last. ours, theirs: (channels, size) of each
    stage, where size is anything that is equal for maps of one size.
    """
    pairs: list[tuple[int, int]] = []
    for level, (channels, size) in enumerate(ours):
        start = pairs[-1][1] + 1 if pairs else 0
        fitting = (n for n in range(start, len(theirs)) if theirs[n][1] == size and theirs[n][0] >= channels)
        if (match := next(fitting, None)) is not None:
            pairs.append((level, match))
    return pairs


def matching_level(student: NetworkInfo, teacher: NetworkInfo, options: dict[str, Any]) -> str | None:
    """Some stage of the student has the size of one of the teacher's, and no more channels."""
    if reason := feature_maps(student, teacher, options):
        return reason
    if matched_levels(student.features[1:], teacher.features[1:]):
        return None
    return (
        f"needs a stage of the student with the size of one of the teacher's and no more channels, and {student.name} has "
        f"none for {teacher.name}"
    )


def factor_has_a_channel(student: NetworkInfo, teacher: NetworkInfo, options: dict[str, Any]) -> str | None:
    """The share of the teacher's last channels that a factor keeps is one channel or more."""
    if reason := feature_maps(student, teacher, options):
        return reason
    channels = teacher.features[-1][0]
    if int(channels * options["share"]) >= 1:
        return None
    return f"keeps a share of {options['share']} of the {channels} channels of {teacher.name}, which is none"


def transformed_stages(student: NetworkInfo, teacher: NetworkInfo, options: dict[str, Any]) -> str | None:
    """Both networks have two stages, which a comparison of transformations between stages needs."""
    if not options["transformations"]:
        return None
    for net in (student, teacher):
        if len(net.features) < 3:
            return f"compares transformations from stage to stage, but {net.name} does not expose two stages"
    return None


def preactivations(student: NetworkInfo, teacher: NetworkInfo, options: dict[str, Any]) -> str | None:
    """Both networks give each stage's map before its activation, unless the term is told to read the maps themselves."""
    lacking = next((net for net in (student, teacher) if not net.preactivations), None)
    if lacking is None or not options.get("preactivation", True):
        return None
    return f"reads the maps before the activation, and {lacking.name} gives none: kdbench's own networks do"


def last_norms(student: NetworkInfo, teacher: NetworkInfo, options: dict[str, Any]) -> str | None:
    """The batch norm behind each of the teacher's stages is known."""
    if teacher.bundled:
        return None
    return f"reads the teacher's batch norms, and those of {teacher.name} are not known: take one of kdbench's networks"


def last_stage_again(student: NetworkInfo, teacher: NetworkInfo, options: dict[str, Any]) -> str | None:
    """The student's last stage can be built a second time."""
    if student.bundled:
        return None
    return f"trains copies of the student's last stage, and {student.name} cannot be taken apart: take another student"


def something_to_learn(student: NetworkInfo, teacher: NetworkInfo, options: dict[str, Any]) -> str | None:
    """The weights within the term are not all 0."""
    weights = {key: options[key] for key in WEIGHTS if key in options}
    if any(weights.values()):
        return None
    return f"learns nothing with {' and '.join(f'{key} 0' for key in weights)}"


def epsilon_below_variance(student: NetworkInfo, teacher: NetworkInfo, options: dict[str, Any]) -> str | None:
    """The smallest variance lies below the one at the start."""
    if options["epsilon"] < options["initial_variance"]:
        return None
    return (
        f"needs an epsilon below initial_variance, and {options['epsilon']} is not below {options['initial_variance']}"
    )


def transforms_of_the_pretext(student: NetworkInfo, teacher: NetworkInfo, options: dict[str, Any]) -> str | None:
    """A pretext task that brings its own transforms is given no others."""
    if options["pretext"] not in ("jigsaw", "rotation") or options["transforms"] == "rotations":
        return None
    return f"gets transforms of its own from the pretext '{options['pretext']}': leave 'transforms' out"


def images_of_the_pretext(student: NetworkInfo, teacher: NetworkInfo, options: dict[str, Any]) -> str | None:
    """A jigsaw needs images of even size; exemplars need all training images that the teacher's adapter has seen."""
    if options["pretext"] == "jigsaw" and options["image_size"] % 2:
        return f"moves the quarters of images, and a side of {options['image_size']} pixels has no halves: take another size"
    if options["pretext"] == "exemplar" and options["fraction"] < 1:
        return "tells all training images apart, and only a fraction of them is shown: leave the fraction out"
    return None


WEIGHTS = ("node", "edge", "distance_weight", "angle_weight", "transformed_weight", "pretext_weight")
"""The hyper-parameters that weigh the parts of a term."""

CONDITIONS: dict[str, Condition] = {
    "equal_embeddings": equal_embeddings,
    "layer_exists": layer_exists,
    "feature_maps": feature_maps,
    "equal_maps_without_regressor": equal_maps_without_regressor,
    "layer_pair_exists": layer_pair_exists,
    "equal_levels": equal_levels,
    "sides_within_reach": sides_within_reach,
    "equal_channels": equal_channels,
    "matching_level": matching_level,
    "factor_has_a_channel": factor_has_a_channel,
    "transformed_stages": transformed_stages,
    "preactivations": preactivations,
    "last_norms": last_norms,
    "last_stage_again": last_stage_again,
    "something_to_learn": something_to_learn,
    "epsilon_below_variance": epsilon_below_variance,
    "transforms_of_the_pretext": transforms_of_the_pretext,
    "images_of_the_pretext": images_of_the_pretext,
}


def unfit(network: Network, data: DatasetSpec, side: int) -> str:
    """Why a network cannot see images of ``side`` pixels or tell a data set's classes apart; "" if it can."""
    known = info(network)
    if known.classes not in (None, data.class_count):
        return (
            f"{network} gives {known.classes} logits whatever is asked of it, and {data.name} has {data.class_count} "
            "classes: let its builder take the number as 'classes', or give it in 'arguments'"
        )
    if known.size is None and side < known.smallest:
        return (
            f"{network} takes images of {known.smallest} × {known.smallest} pixels or more, and those of {data.name} have "
            f"{side}: set size: {known.smallest} in the data set or the protocol"
        )
    return ""


def subset_errors(spec: DatasetSpec) -> list[tuple[str, str]]:
    """The keys of a subset that exceed the data set, each with a message; assumes classes of equal size."""
    whole = spec.facts
    train, test = whole.train // whole.classes, whole.test // whole.classes
    rest, measured = spec.split(train, test)
    if not rest or not measured:
        lost = "to measure on" if rest else "to train on"
        message = f"{spec.val_split} of the {train:,} training images of a class of {spec.name} leaves none {lost}"
        return [("val_split", message)]
    limits = {"classes": whole.classes, "train_per_class": rest, "test_per_class": measured}
    where = f" when {spec.val_split} of the training set is held out" if spec.val_split else ""
    return [
        (key, f"{spec.name} has only {limit} {key.replace('_', ' ')}{where if key != 'classes' else ''}, not {value}")
        for key, limit in limits.items()
        if (value := getattr(spec, key) or 0) > limit
    ]


def training_images(spec: DatasetSpec, scenario: Scenario) -> int:
    """The number of training images of a student; assumes classes of equal size."""
    whole = spec.facts
    rest, _ = spec.split(whole.train // whole.classes, 0)
    return spec.class_count * max(1, round(scenario.fraction * (spec.train_per_class or rest)))
