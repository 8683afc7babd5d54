"""The Grafana dashboards, written as JSON by `python -m deploy.monitoring.generate`.

Gauges are taken as the maximum by label: for some seconds after a run was resumed there are those
of its controller before. Counters are summed: each controller has its own.
"""

from collections.abc import Sequence

from deploy.monitoring.catalogue import BY_NAME
from deploy.monitoring.grafana import Dashboard, Panel, Query

RUN = 'run=~"$run"'


def gauge(name: str, by: Sequence[str] = (), where: str = "") -> str:
    """A gauge by its labels."""
    return f"max by ({_labels(name, by)}) ({_selector(name, where)})"


def rate(name: str, by: Sequence[str] = (), where: str = "") -> str:
    """What a counter counted a second."""
    return f"sum by ({_labels(name, by)}) (rate({_selector(name, where)}[$__rate_interval]))"


def _labels(name: str, by: Sequence[str]) -> str:
    assert set(by) <= set(BY_NAME[name].labels), (name, by)
    return ", ".join(["run", *by])


def _selector(name: str, where: str = "") -> str:
    return f"{BY_NAME[name].exported}{{{', '.join(filter(None, [RUN, where]))}}}"


def stat(title: str, expression: str, unit: str = "short", help: str = "") -> Panel:
    """One number a run."""
    return Panel(title, [Query(expression, "{{run}}")], unit, "stat", 4, signed=True, help=help)


_QUARANTINED = rate("groups_total", where='outcome="quarantined"')
_DROPPED = rate("groups_total", where='outcome="dropped"')
_SCORED = rate("worker_groups_total", where='role="reward"')
_SAMPLING = rate("worker_seconds_total", where='role="sampler", activity="working"')
_BUSY = rate("worker_seconds_total", ["role"], 'activity="working"')
_IDLE = (
    f"max by (run) (avg_over_time({BY_NAME['run_state'].exported}"
    f'{{{RUN}, state="waiting"}}[$__rate_interval]))'
)

PIPELINE = Dashboard(
    "pipeline",
    "RewardTune: pipeline",
    [
        stat("Step", gauge("step")),
        stat("Finished", f"{gauge('step')} / {gauge('step_target')}", "percentunit"),
        stat("Steps a minute", f"60 * {rate('steps_total')}"),
        stat("Groups a second", rate("groups_total", where='outcome="trained"')),
        stat("Mean reward", gauge("reward_mean")),
        stat(
            "Status is old by",
            f"time() - {gauge('status_timestamp_seconds')}",
            "s",
            "Seconds since the controller last looked: it does so every second.",
        ),
        Panel(
            "Groups in the queue",
            [Query(gauge("queue_groups", ["stage", "state"]), "{{run}} {{stage}} {{state}}")],
            stacked=True,
            help="Where groups gather is the stage that cannot keep up.",
        ),
        Panel(
            "Oldest wait",
            [Query(gauge("queue_oldest_wait_seconds", ["stage"]), "{{run}} {{stage}}")],
            "s",
        ),
        Panel(
            "Groups out, and the window",
            [
                Query(gauge("queue_out_groups"), "{{run}} out"),
                Query(gauge("queue_window_groups"), "{{run}} window"),
            ],
            help="At the window, samplers wait for the learner.",
        ),
        Panel(
            "Groups finished a second, by stage",
            [
                Query(rate("worker_groups_total", ["role"]), "{{run}} {{role}}"),
                Query(rate("groups_total", ["outcome"]), "{{run}} {{outcome}}"),
            ],
        ),
        Panel(
            "Bottleneck",
            [Query(gauge("bottleneck", ["role"]), "{{run}} {{role}}")],
            kind="state-timeline",
            help="1 for the role that holds the run up; `rewardtune status` says it in a sentence.",
        ),
        Panel(
            "Leases that went wrong, a minute",
            [Query(f"60 * {rate('leases_total', ['event'])}", "{{run}} {{event}}")],
        ),
        Panel(
            "Queue out of reach",
            [Query(gauge("queue_unreachable"), "{{run}}")],
            top=1,
        ),
    ],
)

REWARDS = Dashboard(
    "rewards",
    "RewardTune: rewards",
    [
        Panel("Mean reward", [Query(gauge("reward_mean"), "{{run}}")], signed=True),
        Panel(
            "Samples without a reward",
            [Query(gauge("reward_unscored_ratio"), "{{run}}")],
            "percentunit",
            top=1,
        ),
        Panel(
            "Failures a minute",
            [Query(f"60 * {rate('reward_failures_total', ['kind'])}", "{{run}} {{kind}}")],
        ),
        Panel(
            "Quarantined groups a minute",
            [Query(f"60 * {_QUARANTINED}", "{{run}}")],
        ),
        Panel(
            "Seconds a group, by part",
            [
                Query(
                    f"{rate('reward_seconds_total', ['part'])} / on (run) group_left () "
                    f"({_SCORED} > 0)",
                    "{{run}} {{part}}",
                )
            ],
            "s",
            stacked=True,
        ),
        Panel(
            "Waiting to be scored",
            [
                Query(gauge("queue_groups", ["state"], 'stage="to_score"'), "{{run}} {{state}}"),
            ],
        ),
        Panel(
            "Wait before scoring",
            [
                Query(
                    gauge("queue_wait_seconds", ["quantile"], 'stage="to_score"'),
                    "{{run}} {{quantile}}",
                )
            ],
            "s",
        ),
        Panel(
            "Reward rises while the metric falls",
            [Query(gauge("reward_hacking"), "{{run}}")],
            top=1,
        ),
    ],
)

LEARNER = Dashboard(
    "learner",
    "RewardTune: learner",
    [
        Panel("Steps a minute", [Query(f"60 * {rate('steps_total')}", "{{run}}")]),
        Panel(
            "Where its time goes",
            [
                Query(
                    f"{rate('learner_seconds_total', ['part'])} / on (run) group_left () "
                    f"({rate('learner_seconds_total')} > 0)",
                    "{{run}} {{part}}",
                )
            ],
            "percentunit",
            stacked=True,
            top=1,
        ),
        Panel(
            "Idle: waiting for groups",
            [Query(_IDLE, "{{run}}")],
            "percentunit",
            top=1,
            help="Of the looks at the run, once a second, the share that found it waiting.",
        ),
        Panel(
            "Staleness, and its bound",
            [
                Query(gauge("staleness_versions", ["stat"]), "{{run}} {{stat}}"),
                Query(gauge("staleness_bound_versions"), "{{run}} bound"),
            ],
        ),
        Panel("Entropy", [Query(gauge("policy_entropy_nats"), "{{run}}")]),
        Panel("Gradient norm", [Query(gauge("gradient_norm"), "{{run}}")]),
        Panel(
            "Groups dropped as too stale, a minute",
            [Query(f"60 * {_DROPPED}", "{{run}}")],
        ),
        Panel(
            "State",
            [Query(f"{gauge('run_state', ['state'])} > 0", "{{run}} {{state}}")],
            kind="state-timeline",
        ),
        Panel("Ended", [Query(gauge("ended_total", ["state"]), "{{run}} {{state}}")]),
    ],
)

WORKERS = Dashboard(
    "workers",
    "RewardTune: workers",
    [
        Panel(
            "Workers",
            [Query(f"{gauge('workers', ['role', 'state'])} > 0", "{{run}} {{role}} {{state}}")],
            stacked=True,
        ),
        Panel(
            "Busy",
            [
                Query(
                    f"{_BUSY} / ({rate('worker_seconds_total', ['role'])} > 0)", "{{run}} {{role}}"
                )
            ],
            "percentunit",
            top=1,
            help="Working, of working and waiting. The role near 100 % is the bottleneck.",
        ),
        Panel(
            "Restarts in the last hour",
            [
                Query(
                    f"sum by (run, role) (increase({_selector('worker_restarts_total')}[1h]))",
                    "{{run}} {{role}}",
                )
            ],
        ),
        Panel(
            "Groups a second",
            [Query(rate("worker_groups_total", ["role"]), "{{run}} {{role}}")],
        ),
        Panel("Tokens a second", [Query(rate("sampler_tokens_total"), "{{run}}")]),
        Panel(
            "Samplers: loading weights, of working",
            [
                Query(
                    f"{rate('sampler_weights_seconds_total')} / on (run) ({_SAMPLING} > 0)",
                    "{{run}}",
                )
            ],
            "percentunit",
            top=1,
        ),
        Panel(
            "Versions behind: the oldest weights that a sampler has",
            [Query(gauge("sampler_lag_versions"), "{{run}}")],
        ),
    ],
)

DASHBOARDS = (PIPELINE, REWARDS, LEARNER, WORKERS)
