"""Pipelines: what each operation does from the image to the answer, readable top to bottom."""

from __future__ import annotations

from dataclasses import dataclass

from service.api import schema
from service.capture.captures import Captures
from service.capture.reasons import hard_frames
from service.capture.records import Offer
from service.observability.observer import Observer
from service.pipelines.automatic import AutomaticPipeline
from service.pipelines.capturing import Capturing
from service.pipelines.control import ModelControl
from service.pipelines.detect import DetectPipeline
from service.pipelines.drifting import DriftWatches
from service.pipelines.edges import EdgesPipeline
from service.pipelines.engine import Engine
from service.pipelines.inspect import InspectPipeline
from service.pipelines.instances import InstancesPipeline
from service.pipelines.refinement import Refiner
from service.pipelines.segment import SegmentPipeline
from service.pipelines.semantic import SemanticPipeline
from service.pipelines.sessions import Sessions
from service.pipelines.shadow import Disagreed, Hook, Shadows
from service.pipelines.source import EncodedImage
from service.pipelines.track import TrackPipeline
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
    track: TrackPipeline
    shadows: Shadows
    control: ModelControl
    captures: Captures | None = None

    @classmethod
    def of(
        cls,
        engine: Engine,
        cache: EmbeddingCache,
        observer: Observer | None = None,
        captures: Captures | None = None,
    ) -> Pipelines:
        """Build them.

        Args:
            engine: models and threads.
            cache: holds the SAMs' embeddings.
            observer: receives what is measured.
            captures: takes hard frames.
        """
        segment, detect = SegmentPipeline(engine, cache), DetectPipeline(engine)
        observer = observer or Observer()
        shadows = Shadows(engine, observer, None if captures is None else _keep_disagreements(captures))
        return cls(
            engine=engine,
            segment=segment,
            semantic=SemanticPipeline(engine, shadows),
            inspect=InspectPipeline(
                engine,
                Refiner(engine),
                detect,
                shadows=shadows,
                capturing=_capturing(engine, captures),
                drift=DriftWatches(engine, observer),
            ),
            automatic=AutomaticPipeline(engine, segment),
            edges=EdgesPipeline(engine, segment),
            detect=detect,
            instances=InstancesPipeline(engine, detect, segment),
            track=TrackPipeline(engine, segment, Sessions(engine.settings, engine.clock)),
            shadows=shadows,
            control=ModelControl(engine, cache, shadows, observer=observer),
            captures=captures,
        )

    def list_models(self) -> schema.ListModelsResponse:
        """List the catalogue: loaded models first, the default of each family before its others."""
        runners, catalogue = self.engine.runners, self.engine.catalogue
        names = [*runners, *(name for name in catalogue if name not in runners)]
        return schema.ListModelsResponse(
            models=[
                schema.Model(
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


def _keep_disagreements(captures: Captures) -> Hook:
    """Return what offers the frames on which two revisions differ most for capture."""

    def keep(found: Disagreed) -> None:
        if found.image is None:
            return
        frame = found.frame
        remark = (
            f"{found.model}: the revisions {found.active} (active) and {found.shadow} agree to an IoU of "
            f"{frame.iou:.2f}, differ by {frame.infected_fraction_difference:.2f} of a fruit's infected fraction and "
            f"in {frame.grade_changes} grades."
        )
        camera = schema.Frame(frame_id=frame.frame_id)
        captures.offer(Offer(EncodedImage(found.image), ("shadow",), frame.request_id, camera, remark=remark))

    return keep


def _capturing(engine: Engine, captures: Captures | None) -> Capturing | None:
    options = engine.settings.capture_options
    if captures is None or options is None:
        return None
    hard = hard_frames(confidence=options.confidence, grade_margin=options.grade_margin, sample=options.sample)
    return Capturing(captures, hard)
