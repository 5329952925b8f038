"""Follows objects from frame to frame with the memory of SAM 2 or EdgeTAM, as `transformers` does, on a bounded bank.

Objects do not influence each other: each is followed as if it were alone, and those of which equally much is remembered
are looked for in one batch.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from models.letterbox import letterbox_for
from models.sam.constants import LABEL_PADDING
from models.sam.prompts import PackedPrompts, pack, position_grid
from models.sam2.decoder import Sam2Decoder, Sam2Output
from models.sam2.frames import FrameInputs, TrackedMask
from models.sam2.memory import BankSizes, Memory, ObjectBank, Recollection, TrackState
from models.sam2.prompts import with_padding_points
from models.types import BinaryMask, Size

_ABSENT: Final = -1024.0
"""Logits of an object that is not there."""

_MASK_SCALE: Final = 20.0
_MASK_SHIFT: Final = -10.0
"""From a mask prompt, 0 or 1, to logits."""

_TEMPERATURE: Final = 10_000.0
"""Of the sine encoding of time."""


@dataclass(frozen=True, slots=True)
class _Found:
    """Objects on a frame, in one batch.

    Attributes:
        ids: of the objects.
        logits: float32 (n, 4 h, 4 w).
        scores: float32 (n,).
        presence: float32 (n, 1).
        pointers: float32 (n, c).
        masks: what the memory is made of: float32 (n, 1, side, side), logits.
        prompted: whether they were prompted on this frame.
    """

    ids: Sequence[int]
    logits: Tensor
    scores: Tensor
    presence: Tensor
    pointers: Tensor
    masks: Tensor
    prompted: bool


class Sam2Tracker:
    """Follows objects; stateless itself, see `TrackState`. For one thread.

    Args:
        network: a video model of `transformers` on its device, with its weights loaded.
        decoder: of the same network.
        side: of the square that frames are stretched to.
        at_once: most objects in a batch.
    """

    def __init__(self, network: Any, decoder: Sam2Decoder, side: int, at_once: int) -> None:
        self._network = network
        self._config = network.config
        self._decoder = decoder
        self._at_once = at_once
        self._device = network.no_memory_embedding.device
        self._letterbox = letterbox_for(Size(side, side), side, "stretch")
        self._side = side
        cells = self._letterbox.cells
        grid = position_grid(decoder.position_matrix.cpu().numpy(), side, cells)
        self._grid = torch.from_numpy(grid).to(self._device)
        channels = network.hidden_dim
        neck = network.vision_encoder.neck.position_encoding
        with torch.inference_mode():
            self._positions = _encoded_positions(neck, channels, cells, self._device)
            self._perceiver = _Perceiver(network, cells) if hasattr(network, "spatial_perceiver") else None
            if self._perceiver is None:
                encoder = network.memory_encoder.position_encoding
                self._memory_positions = _encoded_positions(encoder, network.mem_dim, cells, self._device)
            else:
                self._memory_positions = self._perceiver.positions
        # The library keeps the few latents in full.
        self._kept_as = torch.bfloat16 if self._perceiver is None else torch.float32
        self.sizes = BankSizes(
            memories=network.num_maskmem - 1,
            pointers=self._config.max_object_pointers_in_encoder - 1,
            memory_bytes=self._kept_as.itemsize * self._memory_positions.numel(),
            pointer_bytes=4 * channels,
        )

    def step(
        self, state: TrackState, features: tuple[Tensor, Tensor, Tensor], inputs: FrameInputs
    ) -> list[TrackedMask]:
        """Find all objects on the next frame and remember them; where it fails, `state` is as before.

        Args:
            state: of the video.
            features: of the frame, float32 (c / 8, 4 h, 4 w), (c / 4, 2 h, 2 w) and (c, h, w).
            inputs: what is said about it.

        Returns:
            One mask per object, those that were known first.
        """
        said = {*inputs.prompts, *inputs.masks}
        known = [each for each in state.objects if each not in inputs.removed]
        scales = (features[0][None], features[1][None], features[2][None])
        found = [
            *self._prompted(scales, inputs),
            *self._masked(scales, inputs.masks),
            *self._followed(scales, state, [each for each in known if each not in said]),
        ]
        remembered = [self._remember(scales[2], batch) for batch in found]

        ids = [*known, *(each for each in (*inputs.prompts, *inputs.masks) if each not in known)]
        state.objects = {each: state.objects.get(each) or ObjectBank(self.sizes) for each in ids}
        masks: dict[int, TrackedMask] = {}
        for batch, memories in zip(found, remembered, strict=True):
            logits = batch.logits.float().cpu().numpy()
            scores, presence = batch.scores.tolist(), batch.presence[:, 0].tolist()
            for row, each in enumerate(batch.ids):
                masks[each] = TrackedMask(each, logits[row], scores[row], presence[row])
                state.objects[each].add(state.frames, memories[row], prompted=batch.prompted)
        state.frames += 1
        return [masks[each] for each in ids]

    def _prompted(self, scales: tuple[Tensor, Tensor, Tensor], inputs: FrameInputs) -> Iterable[_Found]:
        """Segment objects with points or a box, without looking at what is remembered."""
        letterbox, prompts = inputs.letterbox, inputs.prompts
        fine, middle, coarse = scales
        blank = (fine, middle, coarse + self._network.no_memory_embedding.reshape(1, -1, 1, 1))
        for ids in _chunks(list(prompts), self._at_once):
            some = [prompts[each] for each in ids]
            packed = pack(some, [letterbox] * len(some))
            counts = [len(prompt.points) + (0 if prompt.box is None else 2) for prompt in some]
            ambiguous = [self._is_ambiguous(count, prompted=True) for count in counts]
            output = self._decode(blank, [0] * len(ids), packed)
            yield self._chosen(ids, output, torch.tensor(ambiguous, device=self._device), prompted=True)

    def _masked(self, scales: tuple[Tensor, Tensor, Tensor], masks: Mapping[int, BinaryMask]) -> Iterable[_Found]:
        """Take masks as they are; the decoder tells what they show."""
        for ids in _chunks(list(masks), self._at_once):
            given = torch.from_numpy(np.stack([masks[each] for each in ids]))[:, None].to(self._device, torch.float32)
            inputs = self._network.mask_downsample(given)
            output = self._decode(scales, [0] * len(ids), _nothing(len(ids), self._side), inputs)
            ambiguous = torch.ones(len(ids), dtype=torch.bool, device=self._device)
            chosen = self._chosen(ids, output, ambiguous, prompted=True)
            there = given.flatten(1).any(dim=1, keepdim=True).to(given.dtype)
            logits = given * _MASK_SCALE + _MASK_SHIFT
            quarter = (self._letterbox.logits.height, self._letterbox.logits.width)
            yield _Found(
                ids,
                interpolate(logits, quarter, mode="bilinear", align_corners=False, antialias=True)[:, 0],
                torch.ones(len(ids)),
                _MASK_SCALE * there + _MASK_SHIFT,
                there * chosen.pointers + (1 - there) * self._network.no_object_pointer,
                logits,
                prompted=True,
            )

    def _followed(
        self, scales: tuple[Tensor, Tensor, Tensor], state: TrackState, ids: Sequence[int]
    ) -> Iterable[_Found]:
        """Find objects again by what is remembered of them."""
        fine, middle, coarse = scales
        alike: defaultdict[tuple[int, int], list[tuple[int, Recollection]]] = defaultdict(list)
        for each in ids:
            recollection = state.objects[each].recall(state.frames)
            alike[recollection.layout].append((each, recollection))
        for group in alike.values():
            for chunk in _chunks(group, self._at_once):
                conditioned = self._conditioned(coarse, [recollection for _, recollection in chunk])
                rows = list(range(len(chunk)))
                output = self._decode((fine, middle, conditioned), rows, _nothing(len(chunk), self._side))
                ambiguous = torch.full((len(chunk),), self._is_ambiguous(0, prompted=False), device=self._device)
                yield self._chosen([each for each, _ in chunk], output, ambiguous, prompted=False)

    def _conditioned(self, coarse: Tensor, recollections: Sequence[Recollection]) -> Tensor:
        """Mix what is remembered of each object into a frame's features (1, c, h, w): (n, c, h, w)."""
        network, count = self._network, len(recollections)
        memories = torch.stack([torch.cat([kept for kept, _ in each.memories]) for each in recollections], dim=1)
        temporal = network.memory_temporal_positional_encoding[:, 0]
        placed = [[self._memory_positions + temporal[ago - 1] for _, ago in each.memories] for each in recollections]
        positions = torch.stack([torch.cat(each) for each in placed], dim=1)
        pointers, pointer_positions = self._pointer_tokens(recollections)
        features = _rows(coarse)[:, None].expand(-1, count, -1)
        # EdgeTAM rotates the keys of each memory alike.
        groups = {} if self._perceiver is None else {"num_spatial_memory_tokens": len(placed[0])}
        mixed: Tensor = network.memory_attention(
            current_vision_features=features,
            current_vision_position_embeddings=self._positions[:, None],
            memory=torch.cat([memories.to(torch.float32), pointers]),
            memory_posision_embeddings=torch.cat([positions, pointer_positions]),
            num_object_pointer_tokens=len(pointers),
            **groups,
        )
        return mixed.reshape(-1, count, *mixed.shape[-2:])[0].transpose(1, 2).reshape(count, *coarse.shape[1:])

    def _pointer_tokens(self, recollections: Sequence[Recollection]) -> tuple[Tensor, Tensor]:
        """Return pointers as tokens as wide as memories, (t, n, m), and their encodings of time."""
        network, width = self._network, self._network.mem_dim
        pointers = torch.stack([torch.stack([kept for kept, _ in each.pointers]) for each in recollections], dim=1)
        length, count, channels = pointers.shape
        if self._config.enable_temporal_pos_encoding_for_object_pointers:
            ago = torch.tensor([[ago for _, ago in each.pointers] for each in recollections], dtype=torch.float32)
            time = ago.T.to(self._device) / (self._config.max_object_pointers_in_encoder - 1)
            positions = network.temporal_positional_encoding_projection_layer(_sine(time, channels))
        else:
            positions = pointers.new_zeros(length, count, width)
        parts = max(1, channels // width)
        pointers = pointers.reshape(length, count, parts, -1).permute(0, 2, 1, 3).flatten(0, 1)
        return pointers, positions.repeat_interleave(parts, dim=0)

    def _decode(
        self,
        scales: tuple[Tensor, Tensor, Tensor],
        image_index: Sequence[int],
        packed: PackedPrompts,
        mask_inputs: Tensor | None = None,
    ) -> Sam2Output:
        packed = with_padding_points(packed)
        output: Sam2Output = self._decoder(
            scales,
            torch.tensor(image_index, device=self._device),
            torch.from_numpy(packed.points).to(self._device),
            torch.from_numpy(packed.labels).to(self._device),
            self._grid,
            mask_inputs,
        )
        return output

    def _chosen(self, ids: Sequence[int], output: Sam2Output, ambiguous: Tensor, *, prompted: bool) -> _Found:
        """Choose a mask of each object: the best of three where it is ambiguous, else the one."""
        network = self._network
        best = torch.where(ambiguous, 1 + output.scores[:, 1:].argmax(dim=1), 0)
        row = torch.arange(len(best), device=self._device)
        there = output.presence > 0
        logits = torch.where(there[:, :, None], output.logits[row, best], _ABSENT).float()
        shown = there.float()
        pointers = shown * network.object_pointer_proj(output.tokens[row, best]).float()
        pointers += (1 - shown) * network.no_object_pointer
        masks = interpolate(logits[:, None], (self._side, self._side), mode="bilinear", align_corners=False)
        return _Found(ids, logits, output.scores[row, best], output.presence, pointers, masks, prompted)

    def _remember(self, coarse: Tensor, found: _Found) -> list[Memory]:
        """Encode objects on a frame as memories."""
        network, config = self._network, self._config
        masks = (found.masks > 0).float() if found.prompted else found.masks.sigmoid()
        masks = masks * config.sigmoid_scale_for_mem_enc + config.sigmoid_bias_for_mem_enc
        features, _ = network.memory_encoder(coarse.expand(len(masks), -1, -1, -1), masks)
        hidden = network.occlusion_spatial_embedding_parameter
        if hidden is not None:
            features = features + (found.presence <= 0).float()[..., None, None] * hidden[..., None, None]
        rows = features.flatten(2).transpose(1, 2) if self._perceiver is None else self._perceiver(features)
        rows = rows.to(self._kept_as)
        # Copied one by one: a view of one memory would keep its whole batch.
        return [
            Memory(rows[at].contiguous().clone(), found.pointers[at].float().clone()) for at in range(len(found.ids))
        ]

    def _is_ambiguous(self, points: int, *, prompted: bool) -> bool:
        config = self._config
        return bool(
            config.multimask_output_in_sam
            and (prompted or config.multimask_output_for_tracking)
            and config.multimask_min_pt_num <= points <= config.multimask_max_pt_num
        )


class _Perceiver:
    """Sums a memory up in latents, as EdgeTAM does: some for the whole of it, then one for each of its windows.

    Args:
        network: a video model of `transformers` on its device.
        cells: size of memories.
    """

    def __init__(self, network: Any, cells: Size) -> None:
        device, channels = network.no_memory_embedding.device, network.mem_dim
        self._resampler = network.spatial_perceiver
        shape = torch.Size((1, channels, cells.height, cells.width))
        self._encoding = network.memory_encoder.position_encoding(shape, device, torch.float32)
        config = network.config
        windows = math.isqrt(config.perceiver_resampler_num_latents_2d)
        placed = _encoded_positions(self._resampler.positional_encoding, channels, Size(windows, windows), device)
        self.positions = torch.cat([placed.new_zeros(config.perceiver_resampler_num_latents, channels), placed])
        """Encodings of where the latents are, float32 (latents, m)."""

    def __call__(self, features: Tensor) -> Tensor:
        """Return the latents (n, latents, m) of memories (n, m, h, w)."""
        # One by one: the library's layer fails for more.
        return torch.cat([self._resampler(each[None], self._encoding)[0] for each in features])


def _encoded_positions(encoding: Any, channels: int, size: Size, device: torch.device) -> Tensor:
    """Return a layer's encodings of the cells of a map, float32 (h * w, channels)."""
    return _rows(encoding(torch.Size((1, channels, size.height, size.width)), device, torch.float32))


def _nothing(count: int, side: int) -> PackedPrompts:
    """Return as many prompts without points, box and mask."""
    labels: NDArray[np.int64] = np.full((count, 2), LABEL_PADDING, np.int64)
    cells = letterbox_for(Size(side, side), side, "stretch").cells
    return PackedPrompts(np.zeros((count, 2, 2), np.float32), labels, None, side, cells)


def _rows(features: Tensor) -> Tensor:
    """Return features (1, c, h, w) as (h * w, c)."""
    return features[0].flatten(1).T


def _sine(time: Tensor, channels: int) -> Tensor:
    """Encode times (…) as sines and cosines (…, channels)."""
    half = channels // 2
    steps = torch.arange(half, dtype=torch.float32, device=time.device)
    angles = time[..., None] / _TEMPERATURE ** (2 * (steps // 2) / half)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def _chunks(items: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))
