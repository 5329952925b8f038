"""Pipelines: what each operation does from the image to the answer, readable top to bottom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from service.api.schema import ListModelsResponse, Model
from service.capture.captures import Captures
from service.capture.reasons import hard_frames
from service.pipelines.automatic import AutomaticPipeline
from service.pipelines.capturing import Capturing
from service.pipelines.detect import DetectPipeline
from service.pipelines.drifting import DriftWatch
from service.pipelines.edges import EdgesPipeline
from service.pipelines.engine import Engine
from service.pipelines.inspect import InspectPipeline
from service.pipelines.instances import InstancesPipeline
from service.pipelines.refinement import Refiner
from service.pipelines.segment import SegmentPipeline
from service.pipelines.semantic import SemanticPipeline
from service.runners.embedding_cache import EmbeddingCache


@dataclass(frozen=True, slots=True)
class Pipelines:
    """All pipelines over one engine; and what captures hard frames, where that is wanted."""

    engine: Engine
    segment: SegmentPipeline
    semantic: SemanticPipeline
    inspect: InspectPipeline
    automatic: AutomaticPipeline
    edges: EdgesPipeline
    detect: DetectPipeline
    instances: InstancesPipeline
    captures: Captures | None = None

    @classmethod
    def of(
        cls,
        engine: Engine,
        cache: EmbeddingCache,
        captures: Captures | None = None,
        drift: Mapping[str, DriftWatch] | None = None,
    ) -> Pipelines:
        """Build them.

        Args:
            engine: models and threads.
            cache: holds the SAMs' embeddings.
            captures: takes hard frames.
            drift: watches U-Nets, by their names.
        """
        segment, detect = SegmentPipeline(engine, cache), DetectPipeline(engine)
        return cls(
            engine=engine,
            segment=segment,
            semantic=SemanticPipeline(engine),
            inspect=InspectPipeline(engine, Refiner(engine), detect, _capturing(engine, captures), drift or {}),
            automatic=AutomaticPipeline(engine, segment),
            edges=EdgesPipeline(engine, segment),
            detect=detect,
            instances=InstancesPipeline(engine, detect, segment),
            captures=captures,
        )

    def list_models(self) -> ListModelsResponse:
        """List the catalogue: loaded models first, the default of each family before its others."""
        runners, catalogue = self.engine.runners, self.engine.catalogue
        names = [*runners, *(name for name in catalogue if name not in runners)]
        return ListModelsResponse(
            models=[
                Model(
                    name=name,
                    family=catalogue[name].architecture.family,
                    revision=catalogue[name].revision,
                    licence=catalogue[name].licence,
                    loaded=name in runners,
                    device=runners[name].device if name in runners else None,
                    backend=runners[name].backend_name if name in runners else None,
                )
                for name in names
            ]
        )


def _capturing(engine: Engine, captures: Captures | None) -> Capturing | None:
    options = engine.settings.capture_options
    if captures is None or options is None:
        return None
    hard = hard_frames(confidence=options.confidence, grade_margin=options.grade_margin, sample=options.sample)
    return Capturing(captures, hard)
