"""Pipelines: what each operation does from the image to the answer, readable top to bottom."""

from __future__ import annotations

from dataclasses import dataclass

from service.api.schema import ListModelsResponse, Model
from service.pipelines.automatic import AutomaticPipeline
from service.pipelines.detect import DetectPipeline
from service.pipelines.edges import EdgesPipeline
from service.pipelines.engine import Engine
from service.pipelines.inspect import InspectPipeline
from service.pipelines.instances import InstancesPipeline
from service.pipelines.refinement import Refiner
from service.pipelines.segment import SegmentPipeline
from service.pipelines.semantic import SemanticPipeline
from service.pipelines.sessions import Sessions
from service.pipelines.track import TrackPipeline
from service.runners.embedding_cache import EmbeddingCache


@dataclass(frozen=True, slots=True)
class Pipelines:
    """All pipelines over one engine."""

    engine: Engine
    segment: SegmentPipeline
    semantic: SemanticPipeline
    inspect: InspectPipeline
    automatic: AutomaticPipeline
    edges: EdgesPipeline
    detect: DetectPipeline
    instances: InstancesPipeline
    track: TrackPipeline

    @classmethod
    def of(cls, engine: Engine, cache: EmbeddingCache) -> Pipelines:
        """Build them; `cache` holds the SAMs' embeddings."""
        segment, detect = SegmentPipeline(engine, cache), DetectPipeline(engine)
        return cls(
            engine=engine,
            segment=segment,
            semantic=SemanticPipeline(engine),
            inspect=InspectPipeline(engine, Refiner(engine), detect),
            automatic=AutomaticPipeline(engine, segment),
            edges=EdgesPipeline(engine, segment),
            detect=detect,
            instances=InstancesPipeline(engine, detect, segment),
            track=TrackPipeline(engine, segment, Sessions(engine.settings, engine.clock)),
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
