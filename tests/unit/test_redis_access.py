"""Which Redis may hold a queue, who may use it, and that no password is ever told."""

import asyncio
import ssl

import pytest
import redis

from deploy.config import RunConfig
from deploy.config_file import ConfigError, read_config
from replay.config import QueueConfig
from replay.queue import Frontier, QueueUnavailable
from replay.redis_connection import RedisConnection, RedisRefused, RedisSettings
from replay.redis_fitness import RedisUnfit, check_fitness
from replay.redis_queue import RedisReplayQueue
from replay.redis_runs import remove_run
from tests.certificates import self_signed
from tests.queues import LONG, in_a_loop
from tests.redis_server import MISSING, redis_server

pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))

CONFIG = QueueConfig(groups_per_step=4, block=2, lag=1)


def mint(ordinal):
    return b"ticket %d" % ordinal


@pytest.fixture(scope="module")
def server():
    with redis_server() as running:
        yield running


def pass_stage(queue, stage):
    leases = queue.lease(stage, 9, None, "worker")
    queue.complete([(lease.id, b"payload") for lease in leases])
    return [lease.ordinal for lease in leases]


# -- at start -----------------------------------------------------------------------------------


def test_a_fit_server_is_silent(caplog):
    with redis_server("--maxmemory", "1gb", "--maxmemory-policy", "noeviction") as server:
        check_fitness(server.connect())
    assert caplog.records == []


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("maxmemory-policy", "allkeys-lru", "CONFIG SET maxmemory-policy noeviction"),
        ("appendonly", "no", "Set `appendonly yes`"),
    ],
)
def test_a_server_that_could_lose_groups_is_refused_with_what_to_set(server, name, value, sentence):
    client = server.client()
    (before,) = client.config_get(name).values()
    client.config_set(name, value)
    try:
        with pytest.raises(RedisUnfit, match=sentence):
            check_fitness(server.connect())
    finally:
        client.config_set(name, before)


def test_a_weaker_server_is_warned_of(server, caplog):
    client = server.client()
    client.config_set("appendfsync", "everysec")
    try:
        check_fitness(server.connect())
    finally:
        client.config_set("appendfsync", "always")
    text = "\n".join(record.message for record in caplog.records)
    assert "Set `appendfsync always`" in text
    assert "Set `maxmemory`" in text


# -- users and secrets --------------------------------------------------------------------------


RIGHTS = ("~rewardtune:*", "+@all", "-@dangerous", "+info")


@pytest.fixture(scope="module")
def guarded():
    with redis_server("--requirepass", "admin secret") as server:
        admin = redis.Redis.from_url(server.url, password="admin secret", protocol=2)
        admin.execute_command("ACL", "SETUSER", "tuner", "on", ">s3cret", *RIGHTS)
        yield server


def as_user(server, monkeypatch, password, user="tuner"):
    monkeypatch.setenv("QUEUE_PASSWORD", password)
    url = f"unix://{user}@{server.socket}"
    return RedisConnection(RedisSettings(url, password_env="QUEUE_PASSWORD", patience=1.0))


def test_a_user_with_few_rights_runs_the_whole_queue(guarded, monkeypatch, tmp_path):
    connection = as_user(guarded, monkeypatch, "s3cret")
    check_fitness(connection)
    queue = RedisReplayQueue(connection, "acl", mint)
    queue.open(CONFIG, "here", "a run")
    assert pass_stage(queue, "to_sample") == pass_stage(queue, "to_score") == list(range(8))
    queue.ack(list(range(8)))
    assert queue.frontier() == Frontier(8)
    queue.close()
    assert remove_run(connection, "acl") >= 1
    file = tmp_path / "password"
    file.write_text("s3cret\n")
    by_file = RedisSettings(f"unix://tuner@{guarded.socket}", password_file=file)
    assert RedisConnection(by_file).run("ping", lambda client, again: client.ping())


def test_a_wrong_password_is_refused_at_once_and_never_told(guarded, monkeypatch):
    connection = as_user(guarded, monkeypatch, "wr0ng")
    with pytest.raises(RedisRefused, match=r"replay\.password_env") as caught:
        RedisReplayQueue(connection, "acl", mint).frontier()
    told = f"{caught.value} {caught.value!r} {connection!r} {connection.settings!r}"
    assert "wr0ng" not in told
    assert caught.value.__cause__ is None


def test_a_password_that_is_not_there_is_named_by_its_place(monkeypatch, tmp_path):
    monkeypatch.delenv("NOT_SET", raising=False)
    with pytest.raises(ValueError, match="environment variable NOT_SET is not set"):
        RedisConnection(RedisSettings("redis://h:1/0", password_env="NOT_SET"))
    with pytest.raises(ValueError, match=r"missing cannot be read"):
        RedisConnection(RedisSettings("redis://h:1/0", password_file=tmp_path / "missing"))
    with pytest.raises(ValueError, match="named twice"):
        RedisSettings("redis://h:1/0", password_env="A", password_file=tmp_path / "b")
    with pytest.raises(ValueError, match=r"ca_file .*: no such file"):
        RedisConnection(RedisSettings("rediss://h:1/0", ca_file=tmp_path / "missing"))


@pytest.fixture
def encrypted(server, tmp_path):
    """A port that speaks TLS for the server, since not each is built with it; its certificate."""
    certificate, key = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    async def pass_on(reader, writer):
        while data := await reader.read(2**16):
            writer.write(data)
        writer.close()

    async def accept(reader, writer):
        from_redis, to_redis = await asyncio.open_unix_connection(server.socket)
        await asyncio.gather(pass_on(reader, to_redis), pass_on(from_redis, writer))

    with in_a_loop() as loop:
        listens = asyncio.start_server(accept, "127.0.0.1", 0, ssl=context)
        proxy = asyncio.run_coroutine_threadsafe(listens, loop).result(timeout=LONG)
        yield proxy.sockets[0].getsockname()[1], certificate
        loop.call_soon_threadsafe(proxy.close)


def connected(host, port, ca_file=None, scheme="rediss"):
    url = f"{scheme}://{host}:{port}/0"
    connection = RedisConnection(RedisSettings(url, ca_file=ca_file, patience=0.2))
    return connection.run("ping", lambda client, again: client.ping())


def test_over_tls_the_queue_is_the_same(encrypted):
    port, certificate = encrypted
    settings = RedisSettings(f"rediss://127.0.0.1:{port}/0", ca_file=certificate)
    queue = RedisReplayQueue(RedisConnection(settings), "tls", mint)
    queue.open(CONFIG, "here", "a run")
    assert pass_stage(queue, "to_sample") == pass_stage(queue, "to_score") == list(range(8))
    queue.ack(list(range(8)))
    assert queue.frontier() == Frontier(8)
    queue.close()


def test_who_cannot_be_trusted_is_not_talked_to(encrypted, tmp_path):
    port, certificate = encrypted
    assert connected("127.0.0.1", port, certificate)
    (tmp_path / "other").mkdir()
    other, _ = self_signed(tmp_path / "other")
    for ca_file in (None, other):
        with pytest.raises(QueueUnavailable, match="certificate verify failed"):
            connected("127.0.0.1", port, ca_file)
    with pytest.raises(QueueUnavailable, match="Hostname mismatch"):
        connected("localhost", port, certificate)
    with pytest.raises(QueueUnavailable, match="no answer"):
        connected("127.0.0.1", port, scheme="redis")


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("http://h", "'http'"),
        ("redis://user:s3cret@h:1/0", "password"),
        ("redis://h:1/0?password=s3cret", "password"),
        ("redis://h:1/0?socket_timeout=0", "query"),
        ("redis://h:99999/0", "port"),
        ("redis:///0", "host"),
        ("redis://h:1/queue", "'queue'"),
        ("unix://", "path"),
    ],
)
def test_a_url_that_cannot_be_is_refused_without_repeating_a_password(url, fault):
    with pytest.raises(ValueError, match=fault) as caught:
        RedisSettings(url)
    assert "s3cret" not in str(caught.value)


def settings_fault(tmp_path, *overrides):
    path = tmp_path / "run.yaml"
    path.write_text("name: r\ntask: {kind: detection}\nmodel: {preset: tiny}\n")
    with pytest.raises(ConfigError) as caught:
        read_config(path, overrides, RunConfig)
    return str(caught.value)


@pytest.mark.parametrize(
    "url", ["redis://user:s3cret@h:1/0", "redis://h:1/0?password=s3cret", "redis://:s3'cret@h"]
)
def test_a_config_refuses_a_password_in_the_url_without_repeating_it(tmp_path, url):
    told = settings_fault(tmp_path, f"replay.url={url}")
    assert "replay.url" in told
    assert "cret" not in told


def test_a_config_names_what_is_wrong_with_the_rest(tmp_path):
    twice = settings_fault(tmp_path, "replay.password_env=A", "replay.password_file=b")
    assert "password_env is A and password_file b" in twice
    assert "replay.url" in settings_fault(tmp_path, "replay.url=redis://h:port/0")


def test_where_the_queue_is_may_change_when_a_run_is_resumed(tmp_path, monkeypatch):
    monkeypatch.setenv("QUEUE_PASSWORD", "s3cret")
    path = tmp_path / "run.yaml"
    path.write_text("name: r\ntask: {kind: detection}\nmodel: {preset: tiny}\n")
    plain = read_config(path, [], RunConfig)
    overrides = ["replay.url=redis://h:1/0", "replay.password_env=QUEUE_PASSWORD"]
    on_redis = read_config(path, overrides, RunConfig)
    assert plain.identity() == on_redis.identity()
    assert "s3cret" not in on_redis.model_dump_json()
