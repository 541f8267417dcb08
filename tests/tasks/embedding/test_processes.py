"""Several processes make one table, each its own shards."""

import pyarrow.parquet as pq
import pytest

from hf_geossl.tasks import embed
from hf_geossl.tasks.embedding.arguments import EmbeddingArguments
from hf_geossl.tasks.embedding.processes import Processes
from tests.helpers import forked
from tests.helpers.embedding_models import own_folder
from tests.helpers.images import write_folder


def test_one_process_waits_for_nobody_and_keeps_the_device_that_is_named():
    processes = Processes()
    processes.wait()
    assert (processes.device("cpu"), processes.device(None)) == ("cpu", None)


@pytest.mark.slow
def test_two_processes_write_the_table_of_one(tmp_path):
    model, data = own_folder(tmp_path / "model"), write_folder(tmp_path / "data", rows=30)
    words = ["embed", str(model), str(data), str(tmp_path / "two.parquet"), "--batch_size", "4", "--shard_rows", "4"]
    program = "import sys; from hf_geossl.cli.main import main; assert main(sys.argv[1:]) == 0"
    options = ["--device", "cpu", "--num_workers", "0"]
    printed = forked.run(program, *words, *options, output=tmp_path / "output.txt", world_size=2)
    embed(model, data, tmp_path / "one.parquet", EmbeddingArguments(batch_size=4, shard_rows=4, num_workers=0))
    assert pq.read_table(tmp_path / "two.parquet").equals(pq.read_table(tmp_path / "one.parquet"))
    assert printed.count("30 rows of 30 images") == 1
