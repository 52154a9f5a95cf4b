"""Networks of other packages as backbones: built by their own code, their feature maps read from their modules' outputs."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from kdbench.catalogue.plugins import import_plugin, read_source
from kdbench.catalogue.text import listed, nearest
from kdbench.data.preprocess import import_torchvision
from kdbench.errors import BadInput, reason_of
from kdbench.models.backbone import Backbone
from kdbench.models.outputs import Outputs
from kdbench.models.tracing import ForwardPass, Unfit, as_map, kind_of
from kdbench.suite.components import NetworkSpec


SIDES = (64, 32, 28, 96, 128, 224, 256, 299, 384)
"""The sides of images, in pixels, at which a network that names no size is tried. One that takes the first takes any."""

CLASS_ARGUMENTS = ("classes", "num_classes", "n_classes", "nb_classes")
"""The names of a builder's argument for the number of classes, in the order in which they are looked for."""


class ExternalNetwork(Backbone):
    """A network of another package under ``net``, whose logits are its output.

    The feature maps are the outputs of the modules ``maps``: f0, f1 … fL. Tokens [B, N, C] become maps [B, C, H, W] without
    the leading class and register tokens, and maps [B, H, W, C] are transposed. The embedding is the output of the module
    ``embedding``, averaged over the pixels of a map; without one, the input of the classifier. There are no pre-activations.

    classifier: the linear layer that makes the logits; None where there is none
    width:      D, of the embedding
    size:       the only side of images, in pixels, that the network takes; None: any
    classes:    K, of the logits

    ``class_arguments`` are the names of its builder's arguments for the number of classes: one or none.
    """

    prefix: ClassVar[str] = "net."
    class_arguments: tuple[str, ...] = ()

    def __init__(
        self,
        net: nn.Module,
        maps: Sequence[str],
        embedding: str | None,
        classifier: str | None,
        *,
        width: int,
        size: int | None,
        classes: int,
    ) -> None:
        super().__init__()
        self.net = net
        self.maps = tuple(maps)
        self.embedding = embedding
        self.classifier = classifier
        self.classifier_name = None if classifier is None else f"net.{classifier}"
        self.width = width
        self.size = size
        self.classes = classes

    def forward(self, images: Tensor) -> Outputs:
        """Return the network's logits, its embedding and maps."""
        seen: dict[str, Tensor] = {}
        with recorded(self.net, self.maps, seen), self._embedding_recorded(seen):
            logits = self.net(images)
        if isinstance(logits, Outputs):
            return logits
        features = [as_map(seen[name]) for name in self.maps]
        return Outputs(logits, _flattened(seen[_EMBEDDING]), features, [])

    @contextmanager
    def _embedding_recorded(self, seen: dict[str, Tensor]) -> Iterator[None]:
        if self.embedding:
            hook = self.net.get_submodule(self.embedding).register_forward_hook(partial(_keep, seen, _EMBEDDING))
        elif self.classifier is not None:
            hook = self.net.get_submodule(self.classifier).register_forward_pre_hook(partial(_keep_input, seen))
        else:
            yield
            return
        try:
            yield
        finally:
            hook.remove()

    def feature_modules(self) -> list[nn.Module]:
        """The whole network: what comes after the last map gets no gradient from it."""
        return [self.net]


_EMBEDDING = "embedding"


def _keep(seen: dict[str, Tensor], name: str, module: nn.Module, inputs: Any, output: Any) -> None:
    seen[name] = output


def _keep_input(seen: dict[str, Tensor], module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    seen[_EMBEDDING] = inputs[0]


@contextmanager
def recorded(net: nn.Module, names: Sequence[str], seen: dict[str, Any]) -> Iterator[None]:
    """Within the context, ``seen`` gets the output of each named module, at each pass anew."""
    hooks = [net.get_submodule(name).register_forward_hook(partial(_keep, seen, name)) for name in names]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _flattened(embedding: Tensor) -> Tensor:
    """[B, D], the mean over the pixels of a map [B, D, H, W]."""
    return embedding.mean((2, 3)) if embedding.dim() == 4 else embedding


def build_external(spec: NetworkSpec, classes: int | None) -> Backbone:
    """Build the network with fresh weights. Without ``classes`` it has 100, or the number on which its builder insists.

    Raises BadInput where its code cannot be imported, raises, or gives no network with logits [B, classes].
    """
    network = _network(spec, classes or 100)
    if classes and isinstance(network, ExternalNetwork) and network.classes != classes:
        raise BadInput(f"{spec} gives {network.classes} logits and not {classes}")
    return network


def _network(spec: NetworkSpec, classes: int) -> Backbone:
    builder = _builder(spec)
    counted = _class_arguments(builder, spec)
    net = _made(spec, builder, dict.fromkeys(counted, classes))
    if isinstance(net, Backbone):
        return net
    reasons = []
    for side in (spec.size,) if spec.size else (*SIDES, *_likely_sides(net, spec)):
        try:
            backbone = _as_backbone(net, spec, side)
            backbone.class_arguments = tuple(counted)
            return backbone
        except Unfit as error:
            reasons.append(f"images of {side} × {side} pixels: {error}")
    raise BadInput(f"{spec} does not take {reasons[0]}. Name the side that it takes as 'size'")


def _likely_sides(net: nn.Module, spec: NetworkSpec) -> list[int]:
    """The sides of images that a builder was asked for, or that one of timm's networks was made for."""
    asked = [spec.arguments[key] for key in ("img_size", "image_size", "input_size") if key in spec.arguments]
    configuration = getattr(net, "default_cfg", None) or {}
    return [side for side in (*asked, *configuration.get("input_size", ())[-1:]) if type(side) is int]


def _made(spec: NetworkSpec, builder: Callable[..., Any], classes: dict[str, int]) -> nn.Module:
    try:
        net = builder(**spec.arguments, **classes)
    except Exception as error:
        raise BadInput(f"{spec.build} cannot be built: {reason_of(error)}") from None
    if not isinstance(net, nn.Module):
        raise BadInput(f"{spec.build} gives {kind_of(net)}, not a torch.nn.Module")
    return net


def _builder(spec: NetworkSpec) -> Callable[..., Any]:
    module, _, name = spec.build.partition(":")
    if spec.library:
        return _library_builder(spec.library, name)
    try:
        source = read_source(module, [module])
        if source.sha256 != spec.source_sha256:
            raise BadInput(
                f"the code of {spec.build} is not what it was when the run was planned. Run the same command again"
            )
        loaded = import_plugin(source, module)
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(f"the module '{module}' cannot be imported: {reason_of(error)}") from None
    found = getattr(loaded, name, None)
    if not callable(found):
        near = nearest(name, [each for each, value in vars(loaded).items() if callable(value)])
        hint = f" Did you mean '{near}'?" if near else ""
        raise BadInput(f"there is no function or class '{name}' in {loaded.__file__}.{hint}")
    return found  # type: ignore[no-any-return]


def _library_builder(library: str, name: str) -> Callable[..., Any]:
    torchvision = import_torchvision()  # timm imports it, too, and cannot where its compiled operators are missing
    if library == "torchvision":
        names, make = torchvision.models.list_models(module=torchvision.models), torchvision.models.get_model
    else:
        timm = importlib.import_module("timm")
        names, make = timm.list_models(), timm.create_model
    if name.partition(".")[0] not in names:
        near = nearest(name, _likely(name, names))
        hint = f" Did you mean '{library}:{near}'?" if near else ""
        raise BadInput(f"{library} has no network '{name}'.{hint}")
    return partial(make, name)


def _likely(name: str, names: Sequence[str]) -> list[str]:
    """The names that begin like one, for a search that compares few."""
    return [each for each in names if each[:3] == name[:3]] or list(names)


def _class_arguments(builder: Callable[..., Any], spec: NetworkSpec) -> list[str]:
    """The name of the argument by which a builder is told the number of classes; none where it takes none."""
    if spec.library:
        return ["num_classes"]
    with suppress(ValueError, TypeError):
        parameters = inspect.signature(builder).parameters
        found = [name for name in CLASS_ARGUMENTS if name in parameters]
        return [name for name in found[:1] if name not in spec.arguments]
    return []


def _as_backbone(net: nn.Module, spec: NetworkSpec, side: int) -> ExternalNetwork:
    """The network as a backbone, from what its modules give for images of a side. Raises Unfit, BadInput."""
    passed = ForwardPass(net, side)
    size = spec.size or (None if side == SIDES[0] else side)
    if isinstance(passed.output, Outputs):
        width, classes = passed.output.embedding.shape[1], passed.output.logits.shape[1]
        return ExternalNetwork(net, (), None, None, width=width, size=size, classes=classes)
    logits = passed.output
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        shown = [*logits.shape] if isinstance(logits, Tensor) else kind_of(logits)
        raise BadInput(f"{spec} gives {shown} for one image, not logits [1, K]")
    embedding, maps = spec.embedding, spec.maps if spec.maps is not None else passed.default_maps()
    for name in (*maps, *filter(None, [embedding])):
        _check_module(passed, spec, name, is_map=name in maps)
    classifier = passed.maker_of(logits)
    if embedding is None and classifier is None:
        raise BadInput(f"{spec}: no linear layer makes its logits: name the module that gives its 'embedding'")
    shown = passed.outputs[embedding] if embedding else passed.inputs[classifier or ""]
    width, classes = _flattened(shown).shape[1], logits.shape[1]
    return ExternalNetwork(net, maps, embedding, classifier, width=width, size=size, classes=classes)


def _check_module(passed: ForwardPass, spec: NetworkSpec, name: str, *, is_map: bool) -> None:
    """Raise BadInput for a module that is not there, gives nothing that is needed, or whose output is written over."""
    key = "maps" if is_map else "embedding"
    if name not in passed.outputs:
        names = [each for each, _ in passed.net.named_modules() if each]
        near = nearest(name, [*passed.outputs, *names])
        there = "is not run in a forward pass" if name in names else "is not there"
        hint = f"Did you mean '{near}'?" if near and near != name else f"Its modules: {listed([*passed.outputs])}."
        raise BadInput(f"{key}: the module '{name}' of {spec} {there}. {hint}")
    output = passed.outputs[name]
    try:
        if is_map:
            as_map(output)
        elif not isinstance(output, Tensor) or output.dim() not in (2, 4):
            raise BadInput(f"gives {kind_of(output)}, not an embedding [B, D]")
    except BadInput as error:
        raise BadInput(f"{key}: the module '{name}' of {spec} {error}") from None
    if passed.written_over(name):
        raise BadInput(
            f"{key}: the output of '{name}' of {spec} is changed in place by the module after it: name that one"
        )
