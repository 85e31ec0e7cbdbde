"""One cluster for all searches on Ray: starting Ray takes seconds."""

import pytest


@pytest.fixture(scope="package")
def machine():
    """A cluster on this machine whose head has one CPU; this process has joined it."""
    import ray
    from ray.cluster_utils import Cluster

    from tune import cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.connect(found.address)
    yield found
    ray.shutdown()
    found.shutdown()


@pytest.fixture
def log(tmp_path):
    """An empty folder, beside that of the search."""
    folder = tmp_path / "log"
    folder.mkdir()
    return folder
