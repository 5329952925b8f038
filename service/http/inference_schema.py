"""The JSON of `/v2`, both ways.

What the protocol may add is let be; no value is turned into another type.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

ParametersIn = dict[str, bool | int | float | str]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


class _Named(_Part):
    name: str
    parameters: dict[str, Any] = Field(default_factory=dict)


class WantedOutput(_Named):
    """An output that is asked for."""

    parameters: dict[str, Any] = Field(
        default_factory=dict, description="binary_data: its elements are sent as bytes behind the JSON."
    )


class InputTensor(_Named):
    """An input, with its elements or with how many bytes they take behind the JSON."""

    shape: list[int]
    datatype: str = Field(description="BOOL, UINT8 to UINT64, INT8 to INT64, FP16, FP32, FP64 or BYTES.")
    parameters: dict[str, Any] = Field(
        default_factory=dict, description="binary_data_size: bytes of its elements behind the JSON, instead of data."
    )
    data: list[Any] | None = Field(
        None, description="Row by row in one list, or in lists in lists; an image is base64 text."
    )


class InferenceIn(_Part):
    """The body of `infer`, or the JSON that it begins with."""

    id: str | None = Field(None, description="Told again in the answer.")
    parameters: ParametersIn = Field(
        default_factory=dict,
        description="priority, timeout in microseconds, binary_data_output; for SAMs mask_format, input_size, padding.",
    )
    inputs: list[InputTensor]
    outputs: list[WantedOutput] = Field(default_factory=list, description="All where empty.")


class OutputTensor(_Named):
    """An output, with its elements or with how many bytes they take behind the JSON."""

    datatype: str
    shape: list[int]
    parameters: dict[str, Any] = Field(default_factory=dict, description="binary_data_size, where there is no data.")
    data: list[Any] | None = Field(None, description="Row by row.")


class InferenceOut(_Part):
    """The answer of `infer`, or the JSON that it begins with."""

    model_name: str
    model_version: str = Field(description="First 12 hex digits of the checkpoint's SHA-256.")
    id: str | None = None
    parameters: ParametersIn = Field(
        default_factory=dict, description="Of SAMs: degraded, whether input_size auto took less to meet the deadline."
    )
    outputs: list[OutputTensor]


class ServerMetadataOut(_Part):
    """What the server is."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(_Part):
    """What a tensor is like; -1 is a dimension of any length."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadataOut(_Part):
    """What a model takes and gives; the first form where a tensor has two."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class LiveOut(_Part):
    """Whether the server can be relied on."""

    live: bool


class ReadyOut(_Part):
    """Whether all models are loaded."""

    ready: bool


class ModelReadyOut(ReadyOut):
    """Whether a model is loaded."""

    name: str


class InferenceErrorOut(_Part):
    """An error; its code is in the header `X-Pomona-Code`."""

    error: str = Field(description="What was wrong and what would be right.")
