"""Types of `fedvad.train`'s options; written by scripts/write_reference.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, Literal, TypedDict

__all__ = ["StudentTable", "TrainOptions"]


class StudentTable(TypedDict, total=False):
    """The table `student`, for the methods aand, amsl, daad, dcam, dmdd, paste, rd, stfpm.

    algorithm: How the sites' weights become one set. scaffold goes with methods that train with
        SGD. [one of fedavg, fedprox, scaffold, moon; default: fedavg]
    prox: Weight of fedprox's pull towards the shared weights. [at least 0; default: 0.01]
    moon: Weight of moon's contrastive loss. [at least 0; default: 1]
    wsa: Strength of weight-scope alignment. 0 is none. [at least 0; default: 0]
    fusion: How weight-scope alignment combines the sites' scopes (mean and deviation of the weights
        of a layer). [one of average, average_var, mixture, init, global_model; default: average]
    steps: Training steps of a site in each round. 50 is a short try. [at least 1; default: the
        images of the method's paper, spread over the rounds]
    bootstrap: Last layer that the student shares with the backbone. [default: the one before the
        first of layers]
    combine: How the anomaly maps of the layers become one. [one of product, sum; default: the
        method's own]
    batch: Images in a training step; pairs of images for dmdd. [at least 1; default: 8; 16 for rd,
        aand, daad and amsl; 4 for dmdd]
    learning_rate: Learning rate of a site's optimiser. [above 0; default: 0.4; 0.1 for dcam; 0.005
        for rd, aand, dmdd, daad and amsl]
    decay: How the learning rate falls over all rounds: cosine to a hundredth along half a cosine,
        none not at all. [one of cosine, none; default: cosine]
    warmup: Training steps of each round over which the learning rate rises. [at least 0 steps;
        default: 5]
    jitter: Also learn each image under three other lights: brightness and contrast scaled by up to
        this share. Not for dmdd. [at least 0 and below 1; default: 0]
    mixed_precision: Compute convolutions in bfloat16: faster on a processor with AMX, not for
        mobile nets. [default: false]
    amplify_rounds: Rounds in which the sites advance their common teacher, before the rounds of the
        student. [at least 1; default: 2]
    cache_bytes: Memory for what is computed only once. More goes to a temporary file. [at least 1
        byte; default: 268435456]
    options: Further options of the method's detector. On the command line KEY=VALUE, which may be
        repeated, as width=0.5 for rd or dual.pairs=100 for dmdd; in a file a table. [default: none]
    """

    algorithm: Literal["fedavg", "fedprox", "scaffold", "moon"]
    prox: float
    moon: float
    wsa: float
    fusion: Literal["average", "average_var", "mixture", "init", "global_model"]
    steps: int | None
    bootstrap: int | None
    combine: Literal["product", "sum"] | None
    batch: int | None
    learning_rate: float | None
    decay: Literal["cosine", "none"]
    warmup: int
    jitter: float
    mixed_precision: bool
    amplify_rounds: int
    cache_bytes: int
    options: Mapping[str, Any]


class TrainOptions(TypedDict, total=False):
    """Options of `fedvad.train`; those left out have defaults.

    method: How a detector is made: feddymem to patchcore exchange patch vectors; aand to stfpm
        exchange the weights of a small network; sums exchanges sums over images. A method changes
        some of the defaults of other options. [one of feddymem, feddymem-trained, feddymem-cluster,
        feddymem-position, patchcore, aand, amsl, daad, dcam, dmdd, paste, rd, stfpm, sums; default:
        feddymem]
    backbone: Pretrained network that describes the patches of an image: fedvad-tiny, filterbank,
        spectral, mcunet_in3, mcunet_in4, any timm model, or a file written by fedvad distill.
        spectral is for cubes of bands. [default: fedvad-tiny; resnet18 where weights are given]
    weights: File with the weights of the backbone, in safetensors format. fedvad-tiny and
        filterbank need none, and spectral finds its own in training; a timm model without it is
        downloaded, or read from timm's cache. [default: none]
    image_size: Pixels at which images are read: 256 (a square), 256x512 (height x width),
        fit:256x512 or short:256 (proportions kept). auto chooses by the images of all sites; where
        nobody sees them all (bank, deploy) it is 256. [default: auto]
    tiles: Side of the squares in which images are read, a multiple of 32. With image_size auto,
        images are read at their full size. [from 64 to 2048 pixels; default: none]
    region: Where to look: LEFT,TOP,RIGHT,BOTTOM in percent of width and height, the corners
        X,Y,X,Y,X,Y,... of a polygon, or the file of a mask (white: look). Nothing outside is
        remembered or scored. [default: none]
    engine: Library that runs the backbone. openvino-bf16 multiplies in bfloat16, on processors that
        have it: several times as fast, for scores that differ by a percent. torch is for a GPU.
        [one of openvino, openvino-bf16, torch; default: openvino]
    device: Device that runs the backbone: cpu, or cuda or mps with engine torch. [default: cpu]
    split: Divide one image set into N simulated sites: iid:N (at random), dirichlet:N:ALPHA (of
        unequal sizes) or style:N (by appearance). [default: none]
    good: Folder name that means normal images, besides good. May be repeated. [default: none]
    defect: Folder name that means defects although it sounds normal. May be repeated. [default:
        none]
    leave_out: Normal training image to leave out, by its path in the data folder; somebody has
        looked at it (fedvad plan --suspects). May be repeated. [default: none]
    rounds: Rounds of exchange between the sites and the server. [at least 1; default: 2; 1 for
        patchcore; 5 for students]
    upload_bytes: Greatest size of what a site sends in one round. [at least 4096 bytes; default:
        1000000]
    precision: Number format of the memory rows (patch vectors) that travel. int8 halves the bytes
        of float16, int5 takes less than a third; pca and pq need fewer still and cost accuracy.
        [one of float16, float32, int8, int5, pca, pq; default: float16]
    memory_rows: Greatest number of rows (patch vectors) of the global memory. concat thins out to
        it by k-center selection. [at least 1; default: 32768; 2000 for kmeans and kcenter]
    defence: Whether the server protects itself from manipulated uploads. robust leaves out sites
        whose rows too few other sites support (reference is then union, unless given), and bounds
        how far the weights of one site move a student. [one of none, robust; default: none]
    target_fpr: Wanted false-alarm rate: the share of normal images that may be called anomalous.
        [from 1e-06 to 0.5; default: 0.01]
    compare: Baselines to measure too, separated by commas: each site alone (local), all images in
        one place (pooled), no trained generator (identity). [any of local, pooled, identity;
        default: none]
    seed: Seed of every random choice. [at least 0 and below 2147483648; default: 0]
    jobs: Number of sites that are computed at a time. Results do not depend on it. [at least 1;
        default: 2]
    overlap: Least number of pixels that neighbouring tiles share, a multiple of 32. [at least 0
        pixels; default: 64]
    layers: Layers of the backbone whose outputs describe a patch, for example 1,2. fedvad backbones
        NAME lists them. [default: strides 8 and 16 of a timm model; blocks 3, 6, 9 of an MCUNet;
        all levels of the filter bank; the paper's for a student]
    pool: Side of the neighbourhood, in cells of a layer, over which features are averaged. 1
        averages nothing. [one of 1, 3, 5, 7; default: 3]
    max_bad: Share of the images of a site and set that may be unreadable before the run stops.
        [from 0 to 1; default: 0.05]
    max_pixels: Greatest number of pixels of an image. A larger image counts as unreadable and is
        not decoded. [at least 1 pixel; default: 100000000]
    participation: Share of the sites drawn to take part in a round. [above 0 and at most 1;
        default: 1]
    join: First round of a site that joins late. On the command line SITE:ROUND, which may be
        repeated; in a file a table of site = round. [default: none]
    upload_rows: Greatest number of memory rows (patch vectors) that a site sends in one round, if
        fewer than upload_bytes allows. [at least 1; default: 1500]
    merge: How the server makes one memory of the sites' rows: keep all (concat), choose or average
        down to memory_rows (kcenter, kmeans), or average by patch position (average, with reduce
        position and update ema). [one of concat, kmeans, kcenter, average; default: concat]
    merge_weights: How much merge kmeans weighs a row by the number of patches that it stands for,
        as an exponent: 1 weighs every patch alike, 0 every row, so that a rare patch keeps a row.
        [from 0 to 1; default: 1]
    malicious: Share of the sites that may be manipulated together, for defence robust. [above 0 and
        below 0.5; default: 1/3]
    dimensions: Random directions in which a patch is described. Fewer bear more noise and see less.
        [from 2 to 512; default: 128]
    grid: Parts along each side of an image with sums of their own, for parts that always lie at the
        same place; 1 is the image as a whole. [from 1 to 8; default: 1]
    epsilon: Privacy loss of one image over the whole training, at delta: noise of that strength is
        added to the sums. None is added by default. [above 0; default: none]
    masks: Hide each site's sums under masks that cancel in the total. Then every site must answer
        every round; without, each site needs the whole noise for itself. [default: true]
    reduce: How a site's patches become memory rows: a representative selection (coreset), averages
        of similar patches (cluster), or averages by patch position (position, with update ema).
        [one of coreset, cluster, position; default: coreset]
    pull: How far a selected patch vector is moved to the average of the patches that it stands for:
        0 sends the patches themselves, 1 the averages. [from 0 to 1; default: 0]
    update: What a site adds in each round: the patches least like anything in the memory (grow), or
        moved versions of the rows of round 1 (ema). [one of grow, ema; default: grow]
    ema: Share of a row's old value that a round with update ema keeps. [at least 0 and below 1;
        default: 0.5]
    candidates: Share of all patches from which memory rows are chosen, over the whole run; each
        round draws an equal part. [above 0 and at most 1; default: 0.5; 0.25 for patchcore]
    candidate_bytes: Greatest size of the patches drawn at a site in one round, whatever the number
        of images. [at least 1 byte; default: 67108864]
    projection: Random dimensions in which memory rows are chosen. As many as a patch vector has, or
        more, uses all of them. [at least 1; default: 64]
    min_count: Number of different images that every memory row must be an average of. More than 1
        needs reduce cluster or position, or pull 1. [at least 1 image; default: 1]
    clip: Bound of the root-mean-square length of an image's patch vectors, for the Gaussian
        mechanism; with reduce position only. [above 0; default: none]
    noise: Standard deviation of the added noise, in multiples of the most that one image can
        change. Needs clip. [at least 0; default: 0]
    delta: Delta at which the privacy loss epsilon is reported. [above 0 and below 1; default:
        1e-05]
    train_generator: Train at each site a linear map (the memory generator), through which it then
        sees its patch vectors and the rows of every memory. [default: false]
    anchors: Memory that the generator pulls normal patches to, from round 2 on. [one of global,
        local, union; default: global]
    loss: Loss function of the generator: attraction to the nearest rows and repulsion from the next
        ones (hypersphere), attraction only (attract_only), distance to the nearest row (center), or
        InfoNCE on cosine similarities (infonce). [one of hypersphere, attract_only, center,
        infonce; default: hypersphere]
    epochs: Epochs of the generator's training in each round. [at least 1; default: 1]
    learning_rate: Learning rate of the generator. [above 0; default: 0.001]
    identity_weight: Weight of the loss term that keeps the generator close to the identity. [at
        least 0; default: 0.01]
    map: How distances to the memory become an anomaly map: distance to the nearest row (nn1),
        weighed by how clearly it is the nearest (cfa), as in PatchCore (patchcore), or in units of
        the row's own spread (spread). [one of nn1, cfa, patchcore, spread; default: nn1]
    density: Strength of the density correction: anomaly distances are divided by the local distance
        between memory rows to this power. 0 switches it off. Heat maps take at most 0.5. [from 0 to
        1; default: 0.75]
    density_neighbours: Number of neighbouring memory rows that the local distance is measured on.
        [at least 1; default: 5]
    smooth: Side of the mean filter over the anomaly map, in cells; an odd number, 1 for no filter.
        [at least 1; default: 3]
    top: Share of the cells of the anomaly map that make the image score, which is the mean of the
        highest ones. 0 takes the maximum. [from 0 to 1; default: 0.03]
    top_cells: Greatest number of cells that top takes, so that a larger image does not dilute a
        small defect. [at least 1 cell; default: 32]
    search: How nearest memory rows are searched: exactly, or faster. [one of exact, fast; default:
        fast]
    reference: Memory that scores the images of a site: that of all sites (global), its own (local)
        or both together (union). [one of global, local, union; default: global; union with defence
        robust]
    calibration: Normal images whose scores set the threshold: training images scored without their
        own rows (leave-one-out), images kept out of the memory (holdout), or none. auto takes
        leave-one-out where memory rows are real patches. [one of auto, leave-one-out, holdout,
        none; default: auto]
    calibration_images: Greatest number of normal images of a site that leave-one-out scores. [at
        least 3 images; default: 128]
    holdout: Share of the normal images that calibration holdout keeps out of the training. [above 0
        and below 1; default: 0.2]
    threshold_rule: Whether the upper end of a site's normal scores is estimated from the scores of
        all sites (federated) or from its own alone (own). [one of federated, own; default:
        federated; own with defence robust]
    shared_threshold: Use one threshold for all sites, from the sum of their histograms of normal
        scores; for sites with too few normal images. Not with signed files. [default: false]
    student: see `StudentTable`. Options of student methods.
    """

    method: str
    backbone: str
    weights: str | PathLike[str] | None
    image_size: int | str
    tiles: int | None
    overlap: int
    region: str | None
    layers: Sequence[int] | None
    pool: Literal[1, 3, 5, 7]
    engine: Literal["openvino", "openvino-bf16", "torch"]
    device: str
    split: str | None
    good: str | Sequence[str]
    defect: str | Sequence[str]
    leave_out: str | Sequence[str]
    max_bad: float
    max_pixels: int
    rounds: int
    participation: float
    join: Mapping[str, int]
    upload_bytes: int
    upload_rows: int
    precision: Literal["float16", "float32", "int8", "int5", "pca", "pq"]
    merge: Literal["concat", "kmeans", "kcenter", "average"]
    merge_weights: float
    memory_rows: int | None
    defence: Literal["none", "robust"]
    malicious: float
    dimensions: int
    grid: int
    epsilon: float | None
    masks: bool
    reduce: Literal["coreset", "cluster", "position"]
    pull: float
    update: Literal["grow", "ema"]
    ema: float
    candidates: float
    candidate_bytes: int
    projection: int | None
    min_count: int
    clip: float | None
    noise: float
    delta: float
    train_generator: bool
    anchors: Literal["global", "local", "union"]
    loss: Literal["hypersphere", "attract_only", "center", "infonce"]
    epochs: int
    learning_rate: float
    identity_weight: float
    map: Literal["nn1", "cfa", "patchcore", "spread"]
    density: float
    density_neighbours: int
    smooth: int
    top: float
    top_cells: int
    search: Literal["exact", "fast"]
    reference: Literal["global", "local", "union"]
    target_fpr: float
    calibration: Literal["auto", "leave-one-out", "holdout", "none"]
    calibration_images: int
    holdout: float
    threshold_rule: Literal["federated", "own"]
    shared_threshold: bool
    student: StudentTable
    compare: str | Sequence[str]
    seed: int
    jobs: int
