"""The model card of a distilled backbone, made from its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedvad.report.tables import to_markdown


def model_card(summary: Mapping[str, Any]) -> str:
    """Markdown for what `fedvad distill` returns: what it is, from what, and how near it came."""
    backbone, recipe = summary["backbone"], summary["recipe"]
    taps = ", ".join(
        f"{tap['channels']} channels at stride {tap['stride']}" for tap in backbone["taps"]
    )
    parts = [
        f"# {_plain(summary['name'])}\n",
        f"{_plain(recipe['title'])}\n" if recipe["title"] else "",
        "A frozen backbone for anomaly detection, trained by masked distillation in stages with "
        f"fedvad {summary['version']}. Use: `--backbone {backbone['file']}`.\n",
        "## Network\n",
        to_markdown(
            [
                ["what", "value"],
                ["architecture", _architecture(backbone["architecture"])],
                ["begins", _beginning(recipe, summary["teachers"])],
                ["features", taps],
                ["parameters", f"{backbone['parameters']:,}"],
                ["file", f"{backbone['bytes']:,} bytes, kernels in float16"],
                [
                    f"multiply-accumulates at {backbone['macs_image_size']} px",
                    f"{backbone['macs'] / 1e6:.0f} million",
                ],
                ["content hash", backbone["hash"][:16]],
            ]
        ),
        "## Images\n",
        _images(summary["images"], recipe["image_size"]),
        "## Teachers and stages\n",
        to_markdown(
            [
                ["stage", "teacher", "weights", "steps", "hidden", "loss, first", "loss, last"],
                *(
                    [
                        str(number),
                        _plain(stage["teacher"]),
                        teacher["hash"][:16],
                        f"{stage['steps']:,}",
                        _hidden(options),
                        f"{stage['loss_first']:.4f}",
                        f"{stage['loss_last']:.4f}",
                    ]
                    for number, (stage, teacher, options) in enumerate(
                        zip(summary["stages"], summary["teachers"], recipe["stages"], strict=True),
                        start=1,
                    )
                ),
            ]
        ),
        "`weights`: hash of the teacher's values; their owners' terms apply. `hidden`: share of "
        "positions / channels. Losses are means over a twentieth of the steps.\n",
        "## How near the student came\n",
        to_markdown(
            [
                ["stage", "level", "cosine", "variance explained"],
                *(
                    [str(i), str(j), f"{level['cosine']:.4f}", f"{level['explained']:.4f}"]
                    for i, stage in enumerate(summary["stages"], start=1)
                    for j, level in enumerate(stage["levels"], start=1)
                ),
            ]
        ),
        "Aligned features against the teacher's of the stage, at its end, on 64 images that were "
        "not trained on (other drawings, and other crops of the same files).\n",
        f"Seed {recipe['seed']}. No anomaly detection was measured here, and no label was read.\n",
    ]
    return "\n".join(part for part in parts if part)


def _architecture(values: Mapping[str, Any]) -> str:
    options = ", ".join(f"{name} {value}" for name, value in values["options"].items())
    layers = f"layers {values['layers']}"
    return f"{_plain(values['backbone'])}: {options}; {layers}" if options else (
        f"{_plain(values['backbone'])}; {layers}"
    )  # fmt: skip


def _beginning(recipe: Mapping[str, Any], teachers: Sequence[Mapping[str, Any]]) -> str:
    if recipe["student"]["start"] == "random":
        return "at random"
    return f"with what fits into it of {_plain(teachers[0]['name'])}, by least squares"


def _hidden(options: Mapping[str, Any]) -> str:
    if options["w_m"] == options["w_sem"] == 0:
        return "nothing"
    return f"{options['rho_s']:.0%} / {options['rho_c']:.0%}, {options['mode']}"


def _images(images: Mapping[str, Any], size: int) -> str:
    share = images["procedural"]
    rows = [["source", "images", "share", "licence"]]
    if share > 0:
        rows.append(["drawn by fedvad", _limit(images), f"{share:.0%}", "none needed"])
    total = sum(item["images"] for item in images["sets"])
    for item in images["sets"]:
        part = (1 - share) * item["images"] / total
        count, licence = f"{item['images']:,}", _plain(item["licence"])
        rows.append([_plain(item["name"]), count, f"{part:.0%}", licence])
    return to_markdown(rows) + (
        f"\nAt {size} x {size} pixels. Licences are as the recipe states them.\n"
    )


def _limit(images: Mapping[str, Any]) -> str:
    if images["limit"] is None:
        return "every step new ones"
    return f"{images['limit']:,} with the crops of files"


def _plain(text: str) -> str:
    return " ".join(str(text).split())
