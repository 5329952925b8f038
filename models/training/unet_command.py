"""python -m models.training unet: trains a U-Net on annotated images, rendered scenes, or both."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.data.sources import add_data_arguments
from models.training.machine import add_machine_arguments, machine_of
from models.training.unet_options import PRESETS, UNetOptions

if TYPE_CHECKING:
    from models.training.__main__ import Subparsers

_FIT = ("epochs", "optimiser", "learning_rate", "weight_decay", "schedule", "warm_up", "averaging", "patience", "seed")
_OWN = ("architecture", "encoder_weights", "begin_from", "loss", "batch", "close", "rendered", "rendered_validation")


def register(subparsers: Subparsers) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser("unet", help="train a U-Net", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="the run's folder")
    parser.add_argument("--resume", action="store_true", help="go on with the run in that folder, if there is one")
    parser.add_argument("--name", default="my-unet", help="what requests will call the model (%(default)s)")
    parser.add_argument("--licence", default="not stated", help="of the trained weights (%(default)s)")
    add_data_arguments(parser)
    add_recipe_arguments(parser)
    add_machine_arguments(parser)
    parser.set_defaults(run=_run)


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what decides what is learned; what is not given is the preset's."""
    group = parser.add_argument_group("recipe", "What is not given is the preset's.")
    group.add_argument("--preset", choices=sorted(PRESETS), default="default", help="%(default)s unless given")
    group.add_argument("--architecture", help="unet-mobilenetv2 or unet-resnet18")
    group.add_argument("--encoder-weights", choices=("none", "imagenet"), help="what the encoder begins from")
    group.add_argument("--begin-from", type=Path, metavar="FILE", help="a U-Net's checkpoint to begin from")
    group.add_argument("--loss", help="a sum of dice, focal and cross-entropy, such as dice+0.5*focal")
    group.add_argument("--batch", type=int, help="images at a time")
    group.add_argument("--close", type=float, metavar="SHARE", help="of batches that look closely at fruit and lesions")
    group.add_argument("--rendered", type=int, metavar="N", help="rendered scenes in an epoch")
    group.add_argument("--rendered-validation", type=int, metavar="N", help="rendered scenes to validate on")
    group.add_argument("--epochs", type=int, help="most that are run")
    group.add_argument("--optimiser", choices=("adam", "adamw"))
    group.add_argument("--learning-rate", type=float, help="the highest")
    group.add_argument("--weight-decay", type=float)
    group.add_argument("--schedule", choices=("constant", "cosine"), help="of the learning rate")
    group.add_argument("--warm-up", type=float, help="share of all steps in which the learning rate rises")
    group.add_argument("--averaging", type=float, help="decay of the average of the weights, 0 for none")
    group.add_argument("--patience", type=int, help="epochs without a better score after which to stop, 0 for never")
    group.add_argument("--seed", type=int, help="of everything drawn by lot")


def options_of(given: argparse.Namespace) -> UNetOptions:
    """Read what `add_recipe_arguments` added.

    Raises:
        CannotTrain: a choice that is none.
    """
    preset = PRESETS[given.preset]
    fit = dataclasses.replace(preset.fit, **_given(given, _FIT))
    return dataclasses.replace(preset, fit=fit, **_given(given, _OWN))


def _given(given: argparse.Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(given, name) for name in names if getattr(given, name) is not None}


def _run(given: argparse.Namespace) -> None:
    options = options_of(given)
    from models.training.model_card import Product
    from models.training.unet_training import train_unet

    product = Product(given.out, given.name, given.licence)
    train_unet(options, given.data, product, machine_of(given), resume=given.resume)
