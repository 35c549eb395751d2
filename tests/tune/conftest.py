"""The local Ray, the MLflow store and the small dataset of the jobs' tests, for studies, too."""

from tests.pipelines.conftest import dataset_with_palette, local_ray, tiny, tracking

__all__ = ["dataset_with_palette", "local_ray", "tiny", "tracking"]
