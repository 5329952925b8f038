"""Pipelines: what each operation does from the image to the answer, readable top to bottom."""

from __future__ import annotations

from dataclasses import dataclass

from service.api.schema import ListModelsResponse, Model
from service.observability.observer import Observer
from service.pipelines.automatic import AutomaticPipeline
from service.pipelines.control import ModelControl
from service.pipelines.detect import DetectPipeline
from service.pipelines.edges import EdgesPipeline
from service.pipelines.engine import Engine
from service.pipelines.inspect import InspectPipeline
from service.pipelines.instances import InstancesPipeline
from service.pipelines.refinement import Refiner
from service.pipelines.segment import SegmentPipeline
from service.pipelines.semantic import SemanticPipeline
from service.pipelines.shadow import Shadows
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
    shadows: Shadows
    control: ModelControl

    @classmethod
    def of(cls, engine: Engine, cache: EmbeddingCache, observer: Observer | None = None) -> Pipelines:
        """Build them; `cache` holds the SAMs' embeddings."""
        segment, detect = SegmentPipeline(engine, cache), DetectPipeline(engine)
        observer = observer or Observer()
        shadows = Shadows(engine, observer)
        return cls(
            engine=engine,
            segment=segment,
            semantic=SemanticPipeline(engine, shadows),
            inspect=InspectPipeline(engine, Refiner(engine), detect, shadows),
            automatic=AutomaticPipeline(engine, segment),
            edges=EdgesPipeline(engine, segment),
            detect=detect,
            instances=InstancesPipeline(engine, detect, segment),
            shadows=shadows,
            control=ModelControl(engine, cache, shadows, observer=observer),
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
                    revision=(runners[name].entry if name in runners else catalogue[name]).revision,
                    licence=catalogue[name].licence,
                    loaded=name in runners,
                    device=runners[name].device if name in runners else None,
                    backend=runners[name].backend_name if name in runners else None,
                    revisions=self.control.revisions(name),
                )
                for name in names
            ]
        )
