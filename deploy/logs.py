"""Where log lines go: `runs/NAME/logs/WORKER.log` for each process; warnings to the driver too.

The driver's own lines go to `logs/controller.log`, its warnings to standard error as well. With
`logging.format: json` a line is an object, for programs. A fault that repeats does not flood: see
`RepeatLimiter`.
"""

import copy
import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from deploy.config import RunConfig

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# What a line may be about, given as `extra={"ordinal": 7}`; `subject`: which of several workers.
ABOUT = ("subject", "step", "ordinal", "example", "repeated")
# Whose lines at INFO matter to a run. JAX and Orbax report there what concerns their developers.
OURS = ("actors", "deploy", "learner", "protos", "replay", "rewards", "vision")
BURST, KINDS, WINDOW_SECONDS = 5, 20, 60.0


def configure_logging(config: RunConfig, worker: str) -> None:
    """Sends this process's log to its own file, and warnings to standard error as well."""
    to_stderr = logging.StreamHandler()
    to_stderr.setLevel(logging.WARNING)
    to_stderr.setFormatter(_formatter(config, worker))
    limited = RepeatLimiter([_file(config, worker), to_stderr])
    logging.basicConfig(level=logging.INFO, handlers=[limited], force=True)
    # Ray and JAX report at INFO what concerns their own developers.
    for name in ("ray", "jax", "orbax", "absl"):
        logging.getLogger(name).setLevel(logging.WARNING)


def log_to_stderr(config: RunConfig, worker: str) -> None:
    """For a process outside of Ray: its lines go to standard error, in the run's format."""
    to_stderr = logging.StreamHandler()
    to_stderr.setFormatter(_formatter(config, worker))
    level = logging.getLogger().level
    logging.basicConfig(level=level, handlers=[RepeatLimiter([to_stderr])], force=True)


@contextmanager
def log_of_run(
    config: RunConfig, process: str, step: Callable[[], int | None] = lambda: None
) -> Iterator[None]:
    """Sends the lines of this process, which is a command, to a file of the run too.

    What else it does with them stays as it is, in the run's format, and without what is below the
    level that its root logger had. The error that ends the block is the last line of the file.

    Args:
      config: of the run.
      process: names the file.
      step: which one the run has come to, for lines that say none; None: not known.
    """
    root = logging.getLogger()
    limited = RepeatLimiter([_file(config, process)])
    limited.setLevel(logging.INFO)

    def tell_step(record: logging.LogRecord) -> bool:
        if not hasattr(record, "step") and (now := step()) is not None:
            record.step = now
        return True

    limited.addFilter(tell_step)
    with ExitStack() as restored:
        for handler in root.handlers:
            restored.callback(handler.setLevel, handler.level)
            handler.setLevel(max(handler.level, root.level))
            if config.logging.format == "json":
                restored.callback(handler.setFormatter, handler.formatter)
                handler.setFormatter(_formatter(config, process))
        for package in OURS:
            ours = logging.getLogger(package)
            restored.callback(ours.setLevel, ours.level)
            ours.setLevel(min(ours.getEffectiveLevel(), logging.INFO))
        root.addHandler(limited)
        restored.callback(limited.close)
        restored.callback(root.removeHandler, limited)
        try:
            yield
        except Exception as error:
            # Not to standard error: there the command says it.
            said = (type(error).__name__, error)
            limited.handle(
                root.makeRecord(
                    __name__, logging.ERROR, __file__, 0, "the run ends by %s: %s", said, None
                )
            )
            raise


def flush_logs() -> None:
    """Writes what has been held back; a process that is ended from outside has no time to."""
    for handler in logging.getLogger().handlers:
        handler.flush()


def _file(config: RunConfig, process: str) -> logging.Handler:
    directory = config.directory / "logs"
    directory.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(directory / f"{process}.log", delay=True)
    handler.setFormatter(_formatter(config, process))
    return handler


def _formatter(config: RunConfig, process: str) -> logging.Formatter:
    if config.logging.format == "json":
        return JsonFormatter(config.name, process)
    return logging.Formatter(FORMAT)


def role_of(worker: str) -> str:
    """`reward` of `reward`, `reward-3` and `reward@host`, which is outside of Ray."""
    return re.split("[-@]", worker, maxsplit=1)[0]


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON, of one run and process."""

    def __init__(self, run: str, worker: str) -> None:
        super().__init__()
        self._who = {"run": run, "role": role_of(worker), "worker": worker}

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            **self._who,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: getattr(record, name) for name in ABOUT if hasattr(record, name)}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


_NUMBER = re.compile(r"\d+")
# File, line, level, subject.
_Place = tuple[str, int, int, str]


@dataclass
class _Kind:
    """The records of one kind since `began`."""

    began: float
    seen: int = 0
    last: logging.LogRecord | None = None


class RepeatLimiter(logging.Handler):
    """Hands records on; of those of one kind the first few in a minute.

    Of one kind are those of the same place in the code, level and subject whose text differs in
    numbers only: 300 ordinals that fail alike are one fault, two workers or two faults are not. A
    text may still differ each time, as by a name: after `KINDS` of them in a minute, the place's
    others are one kind.

    What came beyond the first is counted. When the minute is over, or at `flush`, the last one is
    handed on with their number: "... (repeated 312 times)".
    """

    def __init__(
        self,
        targets: Sequence[logging.Handler],
        burst: int = BURST,
        window: float = WINDOW_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._targets = targets
        self._burst, self._window, self._clock = burst, window, clock
        self._kinds: dict[tuple[_Place, str], _Kind] = {}
        self._timer: threading.Timer | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Called with the handler's lock held, as all of this class is."""
        self._tell_repeats(self._clock() - self._window)
        try:
            key = self._key(record)
        except Exception:  # noqa: BLE001  # its text cannot be made; said as logging says it
            self.handleError(record)
            return
        kind = self._kinds.setdefault(key, _Kind(self._clock()))
        kind.seen += 1
        if kind.seen <= self._burst:
            self._hand_on(record)
            return
        kind.last = record
        if self._timer is None:  # so that it is told though nothing else is ever logged
            self._timer = threading.Timer(self._window, self.flush)
            self._timer.daemon = True
            self._timer.start()

    def _key(self, record: logging.LogRecord) -> tuple[_Place, str]:
        subject = str(getattr(record, "subject", ""))
        place = (record.pathname, record.lineno, record.levelno, subject)
        key = (place, _NUMBER.sub("#", record.getMessage()))
        if key in self._kinds or sum(one == place for one, _ in self._kinds) < KINDS:
            return key
        return (place, "")

    def flush(self) -> None:
        """Tells what has been counted."""
        with self._held():
            self._timer = None
            self._tell_repeats(self._clock())
            for target in self._targets:
                target.flush()

    def close(self) -> None:
        """Tells what has been counted, and closes the targets."""
        self.flush()
        for target in self._targets:
            target.close()
        super().close()

    @contextmanager
    def _held(self) -> Iterator[None]:
        self.acquire()
        try:
            yield
        finally:
            self.release()

    def _tell_repeats(self, begun_before: float) -> None:
        for key, kind in list(self._kinds.items()):
            if kind.began > begun_before:
                continue
            del self._kinds[key]
            if kind.last is not None:
                repeated = kind.seen - self._burst
                again = copy.copy(kind.last)
                vars(again)["repeated"] = repeated
                again.msg = f"{kind.last.getMessage()} (repeated {repeated} times)"
                again.args = None
                self._hand_on(again)

    def _hand_on(self, record: logging.LogRecord) -> None:
        for target in self._targets:
            if record.levelno >= target.level:
                target.handle(record)
