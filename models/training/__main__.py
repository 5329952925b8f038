"""Train models.

python -m models.training unet --data FOLDER --out RUN
python -m models.training sam --data FOLDER --out RUN
python -m models.training calibrate --weights FILE --data FOLDER
python -m models.training reference --weights FILE --data FOLDER
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_cache_path

from models.backends.load import ModelStore
from models.data.sources import add_data_arguments
from models.errors import PomonaError
from models.training.errors import CannotTrain
from models.training.options import PRESETS, Machine, Product, SamLossWeights, SamOptions, UNetOptions, crops_of

_FIT = ("epochs", "optimiser", "learning_rate", "weight_decay", "schedule", "warm_up", "averaging", "patience", "seed")
_UNET = (
    "architecture",
    "encoder_weights",
    "begin_from",
    "loss",
    "batch",
    "area",
    "close",
    "close_side",
    "rendered",
    "rendered_validation",
)
_SAM = ("model", "sides", "padding", "batch", "rounds")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; return 1 if it failed, with the reason on stderr."""
    options = command_line().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        options.run(options)
    except (PomonaError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def command_line() -> argparse.ArgumentParser:
    """Build the parser of all subcommands."""
    parser = argparse.ArgumentParser(prog="python -m models.training", description="Train models.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    unet = commands.add_parser(
        "unet", help="train a U-Net", description="Train a U-Net on annotated images, rendered scenes, or both."
    )
    _add_product_arguments(unet, "my-unet")
    add_data_arguments(unet)
    _add_unet_arguments(unet)
    _add_machine_arguments(unet)
    unet.set_defaults(run=_train_unet)
    sam = commands.add_parser(
        "sam", help="fine-tune a SAM", description="Fine-tune the mask decoder of a SAM on annotated images."
    )
    _add_product_arguments(sam, "my-sam")
    add_data_arguments(sam)
    _add_sam_arguments(sam)
    _add_machine_arguments(sam)
    sam.set_defaults(run=_train_sam)
    again = commands.add_parser(
        "calibrate",
        help="calibrate a U-Net",
        description="Measure on validation images how far the infected fractions of a U-Net's fruits are off, and "
        "write it beside the weights. Training does this by itself.",
    )
    again.add_argument("--weights", type=Path, required=True, metavar="FILE", help="the .safetensors file to be served")
    again.add_argument("--architecture", help="unet-mobilenetv2 or unet-resnet18")
    again.add_argument("--area", type=int, metavar="PIXELS", help="most pixels of an image in the network")
    again.add_argument("--rendered-validation", type=int, metavar="N", help="number of rendered scenes")
    add_data_arguments(again)
    _add_machine_arguments(again)
    again.set_defaults(run=_calibrate)
    seen = commands.add_parser(
        "reference",
        help="describe what a U-Net was validated on",
        description="Describe validation images and a U-Net's answers to them, and write that beside the weights: "
        "a service then says how far its images and answers are from it.",
    )
    seen.add_argument("--weights", type=Path, required=True, metavar="FILE", help="the .safetensors file to be served")
    seen.add_argument("--architecture", default="unet-mobilenetv2", help="unet-mobilenetv2 or unet-resnet18")
    seen.add_argument("--area", type=int, metavar="PIXELS", help="most pixels of an image in the network")
    add_data_arguments(seen)
    _add_machine_arguments(seen)
    seen.set_defaults(run=_reference)
    return parser


def unet_options(options: argparse.Namespace) -> UNetOptions:
    """Read the recipe of a U-Net: the preset, changed by the options that are given.

    Raises:
        CannotTrain: an option is out of range.
    """
    preset = PRESETS[options.preset]
    fit = dataclasses.replace(preset.fit, **_given(options, _FIT))
    given = _given(options, _UNET)
    if "area" in given:
        given["crops"] = crops_of(given["area"])
    return dataclasses.replace(preset, fit=fit, **given)


def sam_options(options: argparse.Namespace) -> SamOptions:
    """Read the recipe of a SAM.

    Raises:
        CannotTrain: an option is out of range.
    """
    default = SamOptions()
    loss = SamLossWeights(focal=options.focal_weight, dice=options.dice_weight, iou=options.iou_weight)
    fit = dataclasses.replace(default.fit, **_given(options, _FIT))
    return dataclasses.replace(default, fit=fit, loss=loss, **_given(options, _SAM))


def _sides(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(side) for side in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be sizes such as 512 or 512,1024, got {text!r}") from None


def _given(options: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(options, name) for name in names if getattr(options, name, None) is not None}


def _machine(options: argparse.Namespace) -> Machine:
    """Read the machine, and set the number of PyTorch's threads."""
    if options.workers < 0 or options.threads < 0:
        raise CannotTrain(f"--workers and --threads must be at least 0, got {options.workers} and {options.threads}.")
    if options.threads:
        torch.set_num_threads(options.threads)
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    cache = options.cache or Path(os.environ.get("POMONA_CACHE_DIR") or user_cache_path("pomona"))
    return Machine(
        device=device,
        workers=options.workers,
        cache_dir=cache.expanduser(),
        mixed=not options.full_precision,
        progress=not options.quiet,
    )


def _train_unet(options: argparse.Namespace) -> None:
    recipe = unet_options(options)
    from models.training.unet_recipe import train_unet

    product = Product(options.out, options.name, options.licence)
    train_unet(recipe, options.data, product, _machine(options), resume=options.resume)


def _calibrate(options: argparse.Namespace) -> None:
    given = _given(options, ("architecture", "area", "rendered_validation"))
    recipe = dataclasses.replace(PRESETS["default"], rendered=1, **given)
    from models.training.unet_recipe import calibrate_weights

    calibrate_weights(options.weights, recipe, options.data, _machine(options))


def _reference(options: argparse.Namespace) -> None:
    from models.training.reference import write_weights_reference

    write_weights_reference(options.weights, options.architecture, options.area, options.data, _machine(options))


def _train_sam(options: argparse.Namespace) -> None:
    recipe = sam_options(options)
    from models.training.sam_recipe import Origin, train_sam

    machine = _machine(options)
    origin = Origin(ModelStore(machine.cache_dir, options.weights), options.models_file, options.backend)
    product = Product(options.out, options.name, options.licence)
    train_sam(recipe, options.data, product, machine, origin, resume=options.resume)


def _add_product_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="FOLDER", help="folder of the run")
    add("--resume", action="store_true", help="continue the run in that folder, if there is one")
    add("--name", default=name, help="name of the model in requests (default: %(default)s)")
    add("--licence", default="not stated", help="licence of the trained weights (default: %(default)s)")


def _add_unet_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("recipe", "Options that are not given have the value of the preset.").add_argument
    add("--preset", choices=sorted(PRESETS), default="default", help="recipe to start from (default: %(default)s)")
    add("--architecture", help="unet-mobilenetv2 or unet-resnet18")
    add("--encoder-weights", choices=("none", "imagenet"), help="initial weights of the encoder")
    add("--begin-from", type=Path, metavar="FILE", help="checkpoint of a U-Net to start from")
    add("--loss", help="sum of dice, focal and cross-entropy, such as dice+0.5*focal")
    add("--batch", type=int, help="number of images in a batch")
    add("--area", type=int, metavar="PIXELS", help="most pixels of an image in the network")
    add("--close", type=float, metavar="SHARE", help="share of batches with close-ups of fruit and lesions")
    add("--close-side", type=int, metavar="N", help="side of a close-up in pixels")
    add("--rendered", type=int, metavar="N", help="number of rendered scenes in an epoch")
    add("--rendered-validation", type=int, metavar="N", help="number of rendered scenes to validate on")
    add("--epochs", type=int, help="largest number of epochs")
    add("--optimiser", choices=("adam", "adamw"), help="optimiser")
    add("--learning-rate", type=float, help="highest learning rate")
    add("--weight-decay", type=float, help="decay of the weights")
    add("--schedule", choices=("constant", "cosine"), help="schedule of the learning rate")
    add("--warm-up", type=float, metavar="SHARE", help="share of all steps in which the learning rate rises")
    add("--averaging", type=float, metavar="DECAY", help="decay of the average of the weights, 0 for no average")
    add("--patience", type=int, metavar="N", help="epochs without a better score after which to stop, 0 for never")
    add("--seed", type=int, help="seed of everything random")


def _add_sam_arguments(parser: argparse.ArgumentParser) -> None:
    default = SamOptions()
    add = parser.add_argument_group("recipe").add_argument
    add("--model", default=default.model, help="catalogue entry to start from (default: %(default)s)")
    add(
        "--size",
        type=_sides,
        default=default.sides,
        dest="sides",
        metavar="N[,N]",
        help="longest sides in pixels at which it will be served, of 1024, 768 and 512 (default: 1024)",
    )
    add(
        "--padding",
        choices=("none", "square"),
        default=default.padding,
        help="padding at which it will be served (default: %(default)s)",
    )
    for option, kind, value, description in (
        ("--batch", int, default.batch, "number of prompts in a batch"),
        ("--rounds", int, default.rounds, "corrective clicks after each first prompt"),
        ("--focal-weight", float, default.loss.focal, "weight of the focal loss"),
        ("--dice-weight", float, default.loss.dice, "weight of the dice loss"),
        ("--iou-weight", float, default.loss.iou, "weight of the error of the predicted IoU"),
        ("--epochs", int, default.fit.epochs, "largest number of epochs"),
        ("--learning-rate", float, default.fit.learning_rate, "highest learning rate"),
        ("--weight-decay", float, default.fit.weight_decay, "decay of the weights"),
        ("--warm-up", float, default.fit.warm_up, "share of all steps in which the learning rate rises"),
        ("--averaging", float, default.fit.averaging, "decay of the average of the weights, 0 for no average"),
        ("--patience", int, default.fit.patience, "epochs without a better score after which to stop, 0 for never"),
        ("--seed", int, default.fit.seed, "seed of everything random"),
    ):
        add(option, type=kind, default=value, help=f"{description} (default: %(default)s)")
    add(
        "--schedule",
        choices=("constant", "cosine"),
        default=default.fit.schedule,
        help="schedule of the learning rate (default: %(default)s)",
    )
    add = parser.add_argument_group("model to start from").add_argument
    add("--models-file", type=Path, metavar="FILE", help="models file that adds your own models to the catalogue")
    add("--weights", type=Path, metavar="FOLDER", help="folder of checkpoints under their official names")
    add(
        "--backend",
        choices=("auto", "torch", "openvino"),
        default="auto",
        help="backend that computes the embeddings (default: torch with a CUDA device, otherwise openvino)",
    )


def _add_machine_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("machine").add_argument
    add("--device", default="auto", help="auto (CUDA if there is any), cpu, cuda or cuda:N (default: %(default)s)")
    add("--workers", type=int, default=1, help="number of processes that prepare images (default: %(default)s)")
    add("--threads", type=int, default=0, help="number of threads on a CPU, 0 for all cores (default: %(default)s)")
    add("--full-precision", action="store_true", help="use float32 even where 16 bits are faster")
    add("--cache", type=Path, metavar="FOLDER", help="folder of downloads (default: POMONA_CACHE_DIR or the user's)")
    add("--quiet", action="store_true", help="show no progress bars")


if __name__ == "__main__":
    sys.exit(main())
