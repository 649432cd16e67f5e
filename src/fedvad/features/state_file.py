"""Weights from a safetensors file into a network, under whichever usual names they are stored."""

from __future__ import annotations

import importlib
import io
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedvad.errors import WeightsError, join_names
from fedvad.features.compat import import_timm
from fedvad.features.families import FAMILIES
from fedvad.features.timm_models import skeleton

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
_Shapes = dict[str, tuple[int, ...]]
_Tensors = Mapping[str, "torch.Tensor"]

# what training frameworks put before every name
_PREFIXES = (
    "", "module.", "model.", "backbone.", "encoder.", "_orig_mod.", "model.backbone.",
    "visual.trunk.", "teacher.backbone.", "student.backbone.",
)  # fmt: skip
_FILTERS = ("checkpoint_filter_fn", "_filter_fn", "_filter_torchvision_pretrained")
_PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pkl", ".tar")
# buffers that some releases stored and others compute
_COMPUTED = ("num_batches_tracked", "relative_position_index", "attn_mask", "attention_bias_idxs",
             "relative_coords_table", "mask_token")  # fmt: skip
_CONVERT = (
    'python -c "import torch; from safetensors.torch import save_file; '
    "d = torch.load('{old}', map_location='cpu', weights_only=True); "
    "d = d.get('state_dict', d.get('model', d)); "
    "save_file({{k: v.clone().contiguous() for k, v in d.items() if hasattr(v, 'shape')}}, "
    "'{new}')\""
)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file by name.

    Raises `WeightsError`; for a pickle, which can run code when it is read, with the command that
    converts it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except OSError as error:
        raise WeightsError(f"{path} is not a readable safetensors file: {error}") from error
    except SafetensorError as error:
        if path.suffix.lower() not in _PICKLES and not _is_pickle(path):
            raise WeightsError(f"{path} is not a readable safetensors file: {error}") from error
        command = _CONVERT.format(old=path, new=path.with_suffix(".safetensors"))
        raise WeightsError(
            f"{path.name} is not a readable safetensors file but a pickle, which can run code when "
            f"it is read. If you trust it, convert it:\n{command}"
        ) from error


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(4)
    return start[:2] == b"\x80\x02" or start == b"PK\x03\x04"


def load_weights(network: torch.nn.Module, path: Path, name: str, *, of_timm: bool = True) -> None:
    """Fill a tapped network with the values of a safetensors file, in place.

    The file may be of the whole network or of the tapped one, with or without a classifier, in
    timm's names or any that timm converts (of_timm). No value may be missing; values beyond the
    last tap are not needed. Raises `WeightsError` when the file does not fit, with the
    architecture that it looks like, or holds values that are not finite.
    """
    tensors = read_tensors(path)
    wanted = shapes_of(network)
    best: dict[str, torch.Tensor] = {}
    fewest = len(wanted) + 1
    unknown: list[str] = []
    for found, extra in _readings(tensors, wanted, name) if of_timm else [(tensors, [])]:
        wrong = _wrong(wanted, found)
        if len(wrong) < fewest:
            best, fewest, unknown = dict(found), len(wrong), extra
        if not wrong:
            break
    if fewest:
        raise WeightsError(_misfit(path, name, wanted, best, tensors))
    if unknown:
        log.warning(
            "%s: %d values are no part of %s and are not used: %s",
            path.name, len(unknown), name, join_names(unknown, 3),
        )  # fmt: skip
    values = {key: best[key] for key in wanted}
    broken = [key for key, value in values.items() if not bool(value.isfinite().all())]
    if broken:
        raise WeightsError(f"{path.name} holds values that are not finite: {join_names(broken, 3)}")
    network.load_state_dict(values, strict=False)


def _readings(
    tensors: _Tensors, wanted: _Shapes, name: str
) -> Iterator[tuple[_Tensors, list[str]]]:
    """The file's values under the tapped network's names, for each way to read the file.

    With each come the names in the file that mean nothing to the whole network.
    """
    whole = skeleton(lambda: import_timm().create_model(name))
    full = shapes_of(whole)
    place = _places(full)

    def unknown(names: Iterable[str]) -> list[str]:
        known = (place.get(n, n) in full or n.endswith(_COMPUTED) for n in names)
        return [n for n, is_known in zip(names, known, strict=True) if not is_known]

    yield tensors, unknown(tensors)
    for prefix in _PREFIXES:
        cut = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        named = {place.get(key, key): value for key, value in cut.items()}
        for found in (_converted(named, whole), named) if cut else ():
            tapped = {k: found[place.get(k, k)] for k in wanted if place.get(k, k) in found}
            yield tapped, unknown(found) + [k for k in tensors if not k.startswith(prefix)]


def _places(full: _Shapes) -> dict[str, str]:
    """The whole network's name of each value, by the names that timm's wrappers give it."""
    place = {key: key for key in full}
    for key in full:
        place.setdefault(f"model.{key}", key)
        place.setdefault(key.replace(".", "_", 1), key)  # blocks of the first level are lifted
    return place


def _converted(named: _Tensors, whole: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What timm's own conversion for the architecture makes of a file; empty without one."""
    module = importlib.import_module(type(whole).__module__)
    convert = next((getattr(module, f) for f in _FILTERS if hasattr(module, f)), None)
    if convert is None:
        return {}
    try:
        with redirect_stdout(io.StringIO()):  # timm's DINOv3 conversion prints
            try:
                made: dict[str, Any] = convert(dict(named), whole)
            except TypeError:  # some take no model
                made = convert(dict(named))
    except Exception as error:  # a file of another architecture trips them in many ways
        log.debug("timm's conversion gave up: %s", error)
        return {}
    return made


def _wrong(wanted: _Shapes, found: _Tensors) -> list[str]:
    return [k for k, shape in wanted.items() if k not in found or tuple(found[k].shape) != shape]


def shapes_of(network: torch.nn.Module) -> _Shapes:
    """Of all values of a network that a file of its weights holds, by name."""
    return {
        key: tuple(value.shape)
        for key, value in network.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }


def _misfit(path: Path, name: str, wanted: _Shapes, found: _Tensors, tensors: _Tensors) -> str:
    missing = [key for key in wanted if key not in found]
    shapes = [key for key in wanted if key in found and tuple(found[key].shape) != wanted[key]]
    text = (
        f"{path.name} does not fit {name}: of {len(wanted)} keys {len(missing)} keys missing "
        f"({join_names(missing, 3)}), {len(shapes)} of another shape ({join_names(shapes, 3)})"
    )
    like = recognise(tensors)
    if like and like != name.split(".")[0]:
        return f"{text}\nThe file looks like {like}: give --backbone {like}"
    if any(key.startswith(("embeddings.", "encoder.layer.")) for key in tensors):
        return f"{text}\nThe file has the names of Hugging Face transformers: take timm's file"
    return text


def recognise(tensors: _Tensors) -> str:
    """The timm model whose values a file holds, by names and shapes; empty when it is none known.

    Only usual variants are tried, of the families whose mark is among the names.
    """
    keys = {
        key.removeprefix("model."): tuple(value.shape)
        for key, value in tensors.items()
        if not key.endswith(_COMPUTED)
    }
    best, name = 0.0, ""
    timm = import_timm()
    for family in FAMILIES:
        if not family.mark or not any(re.search(family.mark, key) for key in keys):
            continue
        for variant in filter(timm.is_model, family.variants):  # some need a newer timm
            full = shapes_of(skeleton(partial(timm.create_model, variant)))
            place = _places(full)
            same = sum(full.get(place.get(key, key)) == shape for key, shape in keys.items())
            alike = same / (len(keys) + len(full) - same)
            if same > 0.9 * len(keys) and alike > best:
                best, name = alike, variant
    return name
