"""The page's style sheet: light and dark, narrow and wide."""

STYLE = """
:root {
  color-scheme: light dark;
  --ground: #fbfbfa; --card: #ffffff; --ink: #1d2127; --muted: #5d6570; --line: #d9dce0;
  --before: #7b8490; --after: #c2410c; --best: #1d5fbf; --good: #1a7f37; --bad: #b3261e;
  --hue0: #1d5fbf; --hue1: #d97706; --hue2: #0f8a7e; --hue3: #8e44ad; --hue4: #b3261e;
  --hue5: #6b7f1d; --hue6: #c0267e; --hue7: #7a5230; --hue8: #2a9d3a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #14171b; --card: #1b1f25; --ink: #e8eaed; --muted: #a3abb5; --line: #3a414b;
    --before: #98a2ae; --after: #fb8c4f; --best: #74a9f7; --good: #5fcf80; --bad: #ff8a80;
    --hue0: #74a9f7; --hue1: #f5b041; --hue2: #4fd1c5; --hue3: #c995e8; --hue4: #ff8a80;
    --hue5: #b8cc5a; --hue6: #ff8fc8; --hue7: #d2a679; --hue8: #7fdc8a;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
main, header, footer { max-width: 68rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2.5rem; }
h1 { font-size: 1rem; font-weight: 600; color: var(--muted); margin: 0; }
.verdict { max-width: none; font-size: clamp(1.6rem, 4.5vw, 2.5rem); line-height: 1.2;
  font-weight: 700; letter-spacing: -0.01em; margin: 0.3rem 0 0.5rem; text-wrap: balance; }
.verdict .from { color: var(--before); } .verdict .to { color: var(--after); }
h2 { font-size: 1.3rem; margin: 2.75rem 0 0.4rem; }
p { margin: 0.4rem 0 0.9rem; max-width: 46rem; }
.muted, figcaption, footer { color: var(--muted); font-size: 0.9rem; }
.notice { border-left: 4px solid var(--hue1); background: var(--card); padding: 0.7rem 1rem;
  margin: 1.2rem 0; } .notice ul { margin: 0.3rem 0 0; padding-left: 1.2rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 0.9rem; margin: 0.8rem 0; }
.scroll { overflow-x: auto; width: fit-content; max-width: 100%; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--muted); font-size: 0.9rem; padding-bottom: 0.5rem; }
th, td { padding: 0.34rem 1.1rem 0.34rem 0; text-align: right; white-space: nowrap; }
th:first-child { text-align: left; font-weight: 500; }
thead th { color: var(--muted); font-weight: 600; font-size: 0.86rem;
  border-bottom: 1px solid var(--line); vertical-align: bottom; }
tbody tr + tr > * { border-top: 1px solid color-mix(in srgb, var(--line) 50%, transparent); }
tr.headline > * { font-weight: 700; }
.up { color: var(--good); } .down { color: var(--bad); }
figure { margin: 0; } svg { display: block; width: 100%; height: auto; }
svg text { font-family: inherit !important; }
.wide { max-width: 52rem; overflow-x: auto; } .wide svg { min-width: 36rem; }
.grid { display: grid; gap: 0.8rem; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); }
.grid > .card { margin: 0; max-width: 24rem; }
.row { display: grid; grid-template-columns: repeat(3, minmax(0, 21rem)); gap: 0.6rem; }
.row img { width: 100%; height: auto; display: block; border-radius: 5px; }
.row figcaption { line-height: 1.35; margin-top: 0.25rem; font-size: 0.82rem; }
.row-name { margin: 0 0 0.4rem; font-size: 0.82rem; }
summary { cursor: pointer; font-weight: 600; padding: 0.2rem 0; }
pre { overflow-x: auto; font: 0.85rem/1.45 ui-monospace, "DejaVu Sans Mono", monospace; }
footer { margin: 3rem auto 2rem; padding-top: 1rem; border-top: 1px solid var(--line); }
@media (max-width: 44rem) { .grid > .card { max-width: none; } }
@media print { .card { break-inside: avoid; } }
"""
