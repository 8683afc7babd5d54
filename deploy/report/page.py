"""The page of a measured run: one self-contained HTML file."""

from collections.abc import Sequence
from html import escape

from deploy.report import plots
from deploy.report.measured import Curve, PictureRow, PolicyFigures, Report, fractions
from deploy.report.style import STYLE
from deploy.report.tables import before_after_table, reward_table, time_table

# What to look at first when a run went wrong; the others follow in the order of the file.
FIRST_CURVES = (
    "policy/entropy",
    "optimizer/gradient_norm",
    "reward/spread",
    "reward/unscored_share",
    "policy/length",
    "staleness/mean",
    "staleness/max",
    "importance/mean",
    "importance/max",
    "importance/clipped_share",
    "policy/drift",
    "mismatch/mean",
    "mismatch/max",
    "mismatch/clipped_share",
)
PICTURES_SHOWN = 6  # the others are folded
TRAINED_ON = ("reward/mean", "loss/total")


def page(report: Report) -> str:
    """The whole page."""
    sections = [
        _before_after(report),
        _curves(report),
        _pictures(report.pictures, report),
        _distribution(report),
        _training(report),
        _times(report),
        _settings(report),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(report.run)}: report</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<header>\n<h1>RewardTune report · {escape(report.run)} · {escape(report.task)}</h1>\n"
        f'<p class="verdict">{verdict(report)}</p>\n{_second_line(report)}'
        f"{_warning(report)}{_missing(report.missing)}</header>\n"
        f"<main>\n{''.join(sections)}</main>\n{_footer(report)}</body>\n</html>\n"
    )


def verdict(report: Report) -> str:
    """One sentence of numbers, such as 'mAP on 1,000 test images: 33.9 → 42.0' (HTML)."""
    percent = report.headline in fractions(report.policies)

    def shown(policy: PolicyFigures) -> str:
        value = policy.metrics[report.headline]
        return f"{100 * value:.1f}" if percent else f"{value:.3g}"

    before, after = report.policy("before"), report.policy("after") or report.policy("best")
    assert before is not None
    noun = "image" if report.examples == 1 else "images"
    where = f"{escape(report.headline)} on {report.examples:,} {escape(report.split)} {noun}"
    start = f'<span class="from">{shown(before)}</span>'
    if after is None:
        return f"{where}: {start} before; no “after” yet"
    return f'{where}: {start} → <span class="to">{shown(after)}</span>'


def _second_line(report: Report) -> str:
    before, after = report.policy("before"), report.policy("after")
    if before is None or after is None:
        return ""
    parts = [] if after.step is None else [f"{after.step:,} steps"]
    if before.reward is not None and after.reward is not None:
        parts.append(f"mean reward {before.reward:.3f} → {after.reward:.3f}")
    return f'<p class="muted">{" · ".join([*parts, "greedy decoding"])}</p>\n'


def _missing(sentences: Sequence[str]) -> str:
    if not sentences:
        return ""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return (
        f'<div class="notice" role="note"><strong>Not on this page</strong><ul>{items}</ul></div>\n'
    )


def _warning(report: Report) -> str:
    if report.reward_hacking is None:
        return ""
    return (
        '<div class="notice" role="note"><strong>Warning</strong>'
        f"<p>{escape(str(report.reward_hacking))}.</p></div>\n"
    )


def _section(title: str, body: str) -> str:
    name = title.lower().replace(" ", "-")
    return f'<section aria-labelledby="{name}">\n<h2 id="{name}">{title}</h2>\n{body}</section>\n'


def _figure(svg: str, caption: str = "", extra: str = "") -> str:
    caption = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f'<figure class="card{extra}">{svg}{caption}</figure>\n'


def _before_after(report: Report) -> str:
    origins = " ".join(
        f"<strong>{escape(policy.label)}</strong>: {escape(policy.origin)}"
        + (f", step {policy.step:,}" if policy.step else "")
        + "."
        for policy in report.policies
    )
    chosen = "" if report.examples == report.of_examples else (
        f" These are the first {report.examples:,} of the split's {report.of_examples:,} images."
    )  # fmt: skip
    table = f'<div class="card scroll">{before_after_table(report)}</div>\n'
    return _section("Before and after", f"<p>{origins}{chosen}</p>\n{table}")


def _curves(report: Report) -> str:
    trained = next((c for name in TRAINED_ON if (c := report.curve(name)) is not None), None)
    if trained is None:
        return ""
    held_out = next((c for c in report.held_out if c.name == report.headline), None)
    percent = report.headline in fractions(report.policies)
    what = "loss" if trained.name.startswith("loss/") else "reward"
    text = (
        f"<p>The {what} that training sees, and {escape(report.headline)} on held-out images "
        "that it does not see. Faint: as logged; strong: running mean.</p>\n"
        if held_out is not None
        else f"<p>The {what} that training sees. Faint: as logged; strong: running mean.</p>\n"
    )
    svg = plots.reward_and_metric(trained, held_out, report.held_out_split, percent)
    title = f"{what.capitalize()} and metric" if held_out is not None else what.capitalize()
    return _section(title, text + _figure(svg, extra=" wide") + _agreement(report, percent))


def _agreement(report: Report, percent: bool) -> str:
    if report.agreement is None:
        return ""
    said = str(report.agreement)
    caption = f"{escape(said[0].upper() + said[1:])}. A point for each, joined by step."
    svg = plots.reward_against_metric(report.agreement, percent)
    return f'<div class="grid">{_figure(svg, caption)}</div>\n'


def _pictures(rows: Sequence[PictureRow], report: Report) -> str:
    if not rows:
        return ""
    text = (
        f"<p>{len(rows)} images at equal distances over the {report.examples:,} of the "
        f"{escape(report.split)} split, in its order; chosen by position alone, whatever the "
        "predictions look like. Greedy decoding.</p>\n"
    )
    shown, folded = rows[:PICTURES_SHOWN], rows[PICTURES_SHOWN:]
    body = text + "".join(map(_row, shown))
    if folded:
        more = "".join(map(_row, folded))
        body += f"<details><summary>{len(folded)} more</summary>\n{more}</details>\n"
    return _section("Pictures", body)


def _row(row: PictureRow) -> str:
    name = escape(row.example_id)
    figures = "".join(
        f'<figure><img src="{picture.data}" alt="Image {name}: {escape(picture.caption)}">'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
        for picture in row.pictures
    )
    head = f'<p class="row-name muted">{name}</p>'
    return f'<div class="card">{head}<div class="row">{figures}</div></div>\n'


def _distribution(report: Report) -> str:
    shown = [policy for policy in report.policies if policy.distribution is not None]
    if not shown:
        return ""
    first = shown[0].distribution
    assert first is not None
    text = (
        f"<p>{first.samples} samples for each of {first.examples} images, evenly spaced over the "
        "split, with the same seeds for every policy. A curve that lies higher is better; where "
        "the most likely sample comes near the best one, the policy knows which of its samples "
        "is good.</p>\n"
    )
    curves = "".join(_figure(svg) for svg in plots.quantile_curves(shown))
    means = _figure(
        plots.rewards_by_samples(shown),
        "Means over all choices of n of the samples. Most likely: the highest probability of the "
        "whole sequence.",
        extra=" wide",
    )
    table = f'<div class="card scroll">{reward_table(shown)}</div>\n'
    body = f'{text}<div class="grid">{curves}</div>\n{means}{table}'
    return _section("Reward distribution", body)


def _training(report: Report) -> str:
    order = {name: index for index, name in enumerate(FIRST_CURVES)}
    curves = [c for c in report.curves if c.name not in TRAINED_ON[:1]]
    curves.sort(key=lambda curve: order.get(curve.name, len(order)))
    varying = [curve for curve in curves if curve.varies]
    if not curves:
        return ""
    figures = "".join(_figure(plots.training_curve(c, i)) for i, c in enumerate(varying))
    still = [curve for curve in curves if not curve.varies]
    return _section("Training", f'<div class="grid">{figures}</div>\n{_constants(still)}')


def _constants(curves: Sequence[Curve]) -> str:
    if not curves:
        return ""
    values = ", ".join(f"{escape(curve.name)} {curve.values[0]:.4g}" for curve in curves)
    return f'<p class="muted">Constant: {values}.</p>\n'


def _times(report: Report) -> str:
    if not report.timings:
        return ""
    restarted = [time.process for time in report.timings if time.restarts]
    text = "<p>Seconds of each process by what it did; processes run side by side."
    text += " Working is what is not told apart."
    if restarted:
        text += f" Counted since the last restart: {escape(', '.join(restarted))}."
    body = f"{text}</p>\n{_figure(plots.time_bars(report.timings), extra=' wide')}"
    return _section("Time", f'{body}<div class="card scroll">{time_table(report.timings)}</div>\n')


def _settings(report: Report) -> str:
    return _section(
        "Settings",
        '<details class="card"><summary>The resolved config</summary>'
        f"<pre><code>{escape(report.settings)}</code></pre></details>\n",
    )


def _footer(report: Report) -> str:
    made = " · ".join(f"{escape(key)} {escape(value)}" for key, value in report.made.items())
    return f"<footer>{made}. All figures of this page are in report.json beside it.</footer>\n"
