"""What becomes of a group in a stage is one span, whose ids follow from run and ordinal."""

import asyncio
import itertools
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import yaml

from deploy.config import RunConfig
from deploy.joining import joined_config
from deploy.run_directory import open_run_directory, with_run_id
from deploy.tracing import TracedQueue, Tracer, is_traced, span_id, trace_id, traced_run
from protos.trajectory import FailureKind
from replay.config import QueueConfig
from replay.memory import MemoryReplayQueue
from replay.queue import Frontier, Stage
from replay.remote_queue import ServedRun
from replay.tickets import TicketSource
from tests.otlp import attributes, spans_of


class Waited:
    """The queue in memory, called as a worker does."""

    def __init__(self, queue, loop):
        self._queue, self._loop = queue, loop

    def __getattr__(self, name):
        method = getattr(self._queue, name)
        return lambda *arguments: self._loop.run_until_complete(method(*arguments))


def run_config(tmp_path, **tracing):
    return RunConfig.model_validate(
        {
            "name": "run",
            "runs": str(tmp_path),
            "task": {"kind": "detection"},
            "model": {"preset": "tiny"},
            "tracing": tracing,
        }
    )


@pytest.fixture
def queue():
    config = QueueConfig(groups_per_step=4, block=2, mode="ordered", lag=0, max_deliveries=2)
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        held = runner.run(_made(config))
        yield Waited(held, loop)


async def _made(config):
    return MemoryReplayQueue(config, TicketSource(0, ["a"], "ordered", 0, 4))


def spans(tmp_path, worker):
    lines = (tmp_path / "run" / "traces" / f"{worker}.jsonl").read_text().splitlines()
    return spans_of(lines)


def traced(queue, tmp_path, worker):
    tracer = Tracer(run_config(tmp_path, endpoint="file"), tmp_path / "run", worker)
    return TracedQueue(queue, tracer), tracer


def test_ids_are_functions_of_run_and_ordinal_and_differ():
    assert trace_id("run", 7) == trace_id("run", 7)
    ids = {trace_id(run, ordinal) for run in ("a", "b") for ordinal in range(100)}
    assert len(ids) == 200
    own = {span_id("a", ordinal, stage) for stage in Stage for ordinal in range(100)}
    assert len(own) == 300


def test_a_run_begun_anew_has_other_traces_and_its_workers_everywhere_agree(tmp_path):
    config = run_config(tmp_path)
    ids = []
    for overwrite in (False, False, True):
        with open_run_directory(config, overwrite):
            told = with_run_id(config)
        # A worker outside of Ray has the config from its queue, and perhaps a file of its own.
        served = ServedRun("run", told.model_dump_json(), {})
        here = joined_config(served, "head:1", None, [f"runs={tmp_path / 'elsewhere'}"])
        assert traced_run(here) == traced_run(told)
        own = tmp_path / "own.yaml"
        own.write_text(yaml.safe_dump(config.model_dump(mode="json")))
        assert traced_run(joined_config(served, "head:1", str(own), [])) == traced_run(told)
        ids.append(trace_id(traced_run(told), 7))
    assert ids[0] == ids[1]  # it was resumed
    assert ids[1] != ids[2]


def test_a_share_of_the_groups_is_traced_and_everybody_agrees_which():
    chosen = [ordinal for ordinal in range(2000) if is_traced("run", ordinal, 0.1)]
    assert 120 < len(chosen) < 280
    assert chosen == [ordinal for ordinal in range(2000) if is_traced("run", ordinal, 0.1)]
    assert all(is_traced("run", ordinal, 1.0) for ordinal in range(100))


def test_a_stages_span_is_the_parent_of_the_next(queue, tmp_path):
    for worker, stage in (("sampler", Stage.TO_SAMPLE), ("reward-1", Stage.TO_SCORE)):
        ours, tracer = traced(queue, tmp_path, worker)
        for _ in range(2):
            leases = ours.lease(stage, 2 if stage is Stage.TO_SCORE else 1, None, worker)
            ours.complete([(lease.id, b"payload") for lease in leases])
        tracer.flush()
    ours, tracer = traced(queue, tmp_path, "learner")
    ours.lease(Stage.TO_TRAIN, 4, None, "learner")
    ours.ack([0, 1, 2, 3])
    tracer.flush()
    for ordinal in range(4):
        chain = []
        for worker in ("sampler", "reward-1", "learner"):
            for process, span in spans(tmp_path, worker):
                if attributes(span)["rewardtune.ordinal"] == ordinal:
                    assert process["service.instance.id"] == worker
                    assert process["rewardtune.run"] == "run"
                    chain.append(span)
        assert [span.name for span in chain] == ["sample", "score", "train"]
        assert {span.trace_id for span in chain} == {trace_id("run/", ordinal).to_bytes(16, "big")}
        assert chain[0].parent_span_id == b""
        for before, after in itertools.pairwise(chain):
            assert after.parent_span_id == before.span_id
            assert after.start_time_unix_nano >= before.start_time_unix_nano


def test_attempts_without_an_outcome_stand_beside_the_groups_own_span(queue, tmp_path):
    ours, tracer = traced(queue, tmp_path, "sampler")
    first, second = ours.lease(Stage.TO_SAMPLE, 1, None, "sampler")
    ours.fail([(first.id, "no luck", FailureKind.INFRASTRUCTURE)])
    ours.release([second.id])
    first, second = ours.lease(Stage.TO_SAMPLE, 1, None, "sampler")
    queue.release_worker("sampler", "dead")
    ours.complete([(first.id, b"late")])
    assert ours.renew([second.id]) == []
    tracer.flush()
    told = [
        (attributes(span)["rewardtune.outcome"], span.status.message)
        for _, span in spans(tmp_path, "sampler")
    ]
    assert told == [
        ("failed", "no luck"),
        ("released", ""),
        ("too_late", ""),
        ("lost", "the lease was lost"),
    ]
    settled = {span_id("run/", o, Stage.TO_SAMPLE).to_bytes(8, "big") for o in (0, 1)}
    assert not settled & {span.span_id for _, span in spans(tmp_path, "sampler")}


def test_a_learner_that_waits_and_says_again_where_it_began_loses_no_span(queue, tmp_path):
    ours, tracer = traced(queue, tmp_path, "learner")
    epoch = ours.fence()
    ours.restart(Frontier(), epoch)
    for stage in (Stage.TO_SAMPLE, Stage.TO_SCORE):
        leases = queue.lease(stage, 4, None, "w")
        queue.complete([(lease.id, b"payload") for lease in leases])
    assert len(ours.lease(Stage.TO_TRAIN, 4, None, "learner")) == 4
    ours.restart(Frontier(), epoch)  # a repetition: it changes nothing
    ours.ack([0, 1, 2, 3], (), epoch)
    tracer.flush()
    assert len(spans(tmp_path, "learner")) == 4


def test_spans_reach_a_collector_and_one_that_is_gone_costs_no_work(
    queue, tmp_path, monkeypatch, caplog
):
    got = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append((self.path, self.headers["x-key"], body.decode()))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-key=a%20b")
    server = HTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}/"
    tracer = Tracer(run_config(tmp_path, endpoint=endpoint), tmp_path, "w")
    ours = TracedQueue(queue, tracer)
    try:
        leases = ours.lease(Stage.TO_SAMPLE, 1, None, "w")
        ours.complete([(leases[0].id, b"payload")])
        tracer.flush()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    [(path, key, body)] = got
    assert (path, key) == ("/v1/traces", "a b")
    [(_, span)] = spans_of([body])
    assert span.name == "sample"
    ours.complete([(leases[1].id, b"payload")])
    tracer.flush()
    assert "1 spans are lost" in caplog.text


def test_an_endpoint_that_is_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match="endpoint"):
        run_config(tmp_path, endpoint="collector:4318")
