"""Declarations of the options of sites: the method, features, data and what travels."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

from fedvad.data.bounds import MAX_BAD, MAX_PIXELS
from fedvad.data.checked import Given
from fedvad.data.views import SIDES, Size
from fedvad.detectors.memory.site import ROUNDS, FedDyMemConfig
from fedvad.features.config import Engine, FeatureConfig
from fedvad.features.families import own_names
from fedvad.features.names import brings_weights
from fedvad.federation.codecs import Precision
from fedvad.memory.merge import MergeMode
from fedvad.runs.families import DEFAULT_METHOD, FAMILIES, METHODS, family_of
from fedvad.runs.option import option

Defence = Literal["none", "robust"]


def _exchanged() -> str:
    """What sites send, by the methods of each family."""
    said = []
    for key, family in FAMILIES.items():
        names = [name for name in METHODS if family_of(name) == key]
        verb = "exchanges" if len(names) == 1 else f"to {names[-1]} exchange"
        said.append(f"{names[0]} {verb} {family.sends}")
    return "; ".join(said)


_method = partial(option, group="Method", common=True)
_features = partial(option, group="Features", common=True)
_memory_features = partial(option, group="Features")
_data = partial(option, group="Data", common=True)
_federation = partial(option, group="Federation")


class SiteOptions(Given):
    """Options of the method, features, data and federation."""

    method: str = _method(
        DEFAULT_METHOD,
        f"How a detector is made: {_exchanged()}. A method changes some of the defaults of other "
        "options.",
        choices=tuple(METHODS),
        everyday=True,
    )
    backbone: str = _features(
        FeatureConfig.backbone,
        "Pretrained network that describes the patches of an image: "
        f"{', '.join(own_names())}, any timm model, or a file written by fedvad distill. spectral "
        "is for cubes of bands.",
        default_text=f"{FeatureConfig.backbone}; resnet18 where weights are given",
        everyday=True,
    )
    weights: Path | None = _features(
        None,
        "File with the weights of the backbone, in safetensors format. "
        f"{' and '.join(filter(brings_weights, own_names()))} need none, and spectral finds its "
        "own in training; a timm model without it is downloaded, or read from timm's cache.",
        everyday=True,
        free=True,
        own=True,
        example="resnet18.safetensors",
    )
    image_size: Size = _features(
        "auto",
        "Pixels at which images are read: 256 (a square), 256x512 (height x width), fit:256x512 or "
        "short:256 (proportions kept). auto chooses by the images of all sites; where nobody sees "
        "them all (bank, deploy) it is 256.",
        everyday=True,
    )
    tiles: int | None = _memory_features(
        None,
        "Side of the squares in which images are read, a multiple of 32. With image_size auto, "
        "images are read at their full size.",
        unit="pixels",
        ge=64,
        le=SIDES[1],
        everyday=True,
        example=512,
    )
    overlap: int = _memory_features(
        FeatureConfig.overlap,
        "Least number of pixels that neighbouring tiles share, a multiple of 32.",
        unit="pixels",
        ge=0,
    )
    region: str | None = _memory_features(
        None,
        "Where to look: LEFT,TOP,RIGHT,BOTTOM in percent of width and height, the corners "
        "X,Y,X,Y,X,Y,... of a polygon, or the file of a mask (white: look). Nothing outside is "
        "remembered or scored.",
        everyday=True,
        example="10,0,90,75",
    )
    layers: tuple[int, ...] | None = _features(
        None,
        "Layers of the backbone whose outputs describe a patch, for example 1,2. fedvad backbones "
        "NAME lists them.",
        default_text="strides 8 and 16 of a timm model; blocks 3, 6, 9 of an MCUNet; all levels "
        "of the filter bank; the paper's for a student",
        example=[1, 2],
    )
    pool: Literal[1, 3, 5, 7] = option(
        FeatureConfig.pool,
        "Side of the neighbourhood, in cells of a layer, over which features are averaged. 1 "
        "averages nothing.",
        group="Features",
    )
    engine: Engine = _features(
        FeatureConfig.engine,
        "Library that runs the backbone. openvino-bf16 multiplies in bfloat16, on processors that "
        "have it: several times as fast, for scores that differ by a percent. torch is for a GPU.",
        everyday=True,
        free=True,
        own=True,
    )
    device: str = _features(
        FeatureConfig.device,
        "Device that runs the backbone: cpu, or cuda or mps with engine torch.",
        everyday=True,
        free=True,
        own=True,
    )
    split: str | None = _data(
        None,
        "Divide one image set into N simulated sites: iid:N (at random), dirichlet:N:ALPHA (of "
        "unequal sizes) or style:N (by appearance).",
        everyday=True,
        example="iid:4",
    )
    good: tuple[str, ...] = _data(
        (),
        "Folder name that means normal images, besides good. May be repeated.",
        everyday=True,
        example=["OK"],
    )
    defect: tuple[str, ...] = _data(
        (),
        "Folder name that means defects although it sounds normal. May be repeated.",
        everyday=True,
        example=["no_label"],
    )
    leave_out: tuple[str, ...] = _data(
        (),
        "Normal training image to leave out, by its path in the data folder; somebody has looked "
        "at it (fedvad plan --suspects). May be repeated.",
        everyday=True,
        own=True,
        example=["line1/train/good/7.png"],
    )
    max_bad: float = _data(
        MAX_BAD,
        "Share of the images of a site and set that may be unreadable before the run stops.",
        ge=0,
        le=1,
        free=True,
    )
    max_pixels: int = _data(
        MAX_PIXELS,
        "Greatest number of pixels of an image. A larger image counts as unreadable and is not "
        "decoded.",
        unit="pixels",
        ge=1,
        free=True,
    )
    rounds: int = _federation(
        ROUNDS,
        "Rounds of exchange between the sites and the server.",
        default_text="2; 1 for patchcore; 5 for students",
        ge=1,
        everyday=True,
        common=True,
    )
    participation: float = _federation(
        1.0, "Share of the sites drawn to take part in a round.", gt=0, le=1, common=True
    )
    join: dict[str, int] = _federation(
        dict,
        "First round of a site that joins late. On the command line SITE:ROUND, which may be "
        "repeated; in a file a table of site = round.",
        common=True,
        example={"site3": 2},
    )
    upload_bytes: int = _federation(
        1_000_000,
        "Greatest size of what a site sends in one round.",
        unit="bytes",
        ge=4096,
        everyday=True,
    )
    upload_rows: int = _federation(
        FedDyMemConfig.rows,
        "Greatest number of memory rows (patch vectors) that a site sends in one round, if fewer "
        "than upload_bytes allows.",
        ge=1,
    )
    precision: Precision = _federation(
        "float16",
        "Number format of the memory rows (patch vectors) that travel. int8 halves the bytes of "
        "float16, int5 takes less than a third; pca and pq need fewer still and cost accuracy.",
        everyday=True,
    )
    merge: MergeMode = _federation(
        "concat",
        "How the server makes one memory of the sites' rows: keep all (concat), choose or average "
        "down to memory_rows (kcenter, kmeans), or average by patch position (average, with "
        "reduce position and update ema).",
    )
    merge_weights: float = _federation(
        1.0,
        "How much merge kmeans weighs a row by the number of patches that it stands for, as an "
        "exponent: 1 weighs every patch alike, 0 every row, so that a rare patch keeps a row.",
        ge=0,
        le=1,
    )
    memory_rows: int | None = _federation(
        None,
        "Greatest number of rows (patch vectors) of the global memory. concat thins out to it by "
        "k-center selection.",
        default_text="32768; 2000 for kmeans and kcenter",
        ge=1,
        everyday=True,
        example=2000,
    )
    defence: Defence = _federation(
        "none",
        "Whether the server protects itself from manipulated uploads. robust leaves out sites "
        "whose rows too few other sites support (reference is then union, unless given), and "
        "bounds how far the weights of one site move a student.",
        common=True,
        everyday=True,
    )
    malicious: float = _federation(
        1 / 3,
        "Share of the sites that may be manipulated together, for defence robust.",
        common=True,
        default_text="1/3",
        gt=0,
        lt=0.5,
    )
