"""The style of the page: light and dark by the reader's choice, print in light, wide figures scroll on narrow screens.

Colours of workers keep a contrast of 3 to 1 against the ground in both modes, and never carry a meaning alone.
"""

from __future__ import annotations

from edgedi.pages.drawing import NUM_COLOURS

_LIGHT = ("#2468b0", "#c96a10", "#2b8758", "#a8488f", "#80691c", "#c0392b", "#37829b", "#6b5fb5")
_DARK = ("#6aaeea", "#f2a65a", "#6cc994", "#dd8fca", "#cdb25a", "#ef8377", "#84c5da", "#a99ff0")

_LIGHT_INK = "--ground:#ffffff;--panel:#f5f6f8;--ink:#1a1f26;--soft:#56606e;--rule:#d5dae1;--home:#7a8594;--bad:#b3261e"
_DARK_INK = "--ground:#14181d;--panel:#1d232b;--ink:#e8ecf1;--soft:#a3adba;--rule:#38414d;--home:#8e99a8;--bad:#ff8a80"

_RULES = """
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1160px;margin:0 auto;padding:24px 20px 64px}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 4px;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:44px 0 4px;padding-top:14px;border-top:1px solid var(--rule)}
p{margin:6px 0;max-width:78ch}
.see{color:var(--soft);max-width:92ch}
.sub{color:var(--soft);margin:0 0 18px}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(180px,1fr));gap:12px;margin:18px 0}
.card{background:var(--panel);border:1px solid var(--rule);border-radius:8px;padding:12px 14px}
.card b{display:block;font-size:1.6rem;line-height:1.25;font-variant-numeric:tabular-nums}
.card span{color:var(--soft);font-size:.88rem}
.caveats{background:var(--panel);border-left:4px solid var(--bad);border-radius:4px;
padding:8px 14px 8px 30px;margin:16px 0}
.figure{overflow-x:auto;margin:10px 0}
svg{display:block;width:100%;height:auto}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(340px,100%),1fr));gap:12px}
.scroll{overflow-x:auto;margin:10px 0}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums;min-width:100%}
th,td{padding:5px 8px;border-bottom:1px solid var(--rule);text-align:right;white-space:nowrap}
th{color:var(--soft);font-weight:600;white-space:normal;vertical-align:bottom}
th:first-child,td:first-child{text-align:left}
td.words,th.words{text-align:left}
tr.best td{font-weight:600}
caption{text-align:left;color:var(--soft);padding-bottom:4px}
details{margin:10px 0}
summary{cursor:pointer;color:var(--soft)}
pre{background:var(--panel);border:1px solid var(--rule);border-radius:6px;padding:10px 12px;
overflow-x:auto;font-size:.82rem}
pre.wrap{white-space:pre-wrap;overflow-wrap:anywhere}
dl{display:grid;grid-template-columns:max-content 1fr;gap:4px 16px;margin:10px 0}
dt{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;margin:8px 0;padding:0;list-style:none;font-size:.88rem}
.legend svg{display:inline-block;width:26px;height:14px;vertical-align:-2px;margin-right:6px}
a:focus-visible,summary:focus-visible,.figure:focus-visible{outline:2px solid var(--w0);outline-offset:2px}
text{fill:var(--ink);font:12px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
.tick{fill:var(--soft);font-size:11px}
.small{font-size:11px}
.label{font-size:13px}
.number{font-size:13px;font-variant-numeric:tabular-nums}
.grid,.leader{stroke:var(--rule);stroke-width:1}
.band{fill:var(--soft)}
.home{fill:var(--home)}
.whole{stroke:var(--ink);stroke-width:1.2;stroke-dasharray:3 2}
.ground{fill:var(--ground)}
.tint{opacity:.3}
.halo{stroke:var(--ground);stroke-width:.8}
.track{fill:var(--panel)}
.compute.odd{opacity:.62}
.send{fill:var(--ink)}
.wait{fill:url(#waiting)}
.boundary{stroke:var(--soft);stroke-width:1;stroke-dasharray:2 3;opacity:.7}
.box{opacity:.22}
.dot{opacity:.75}
.disturbed{stroke:var(--bad);stroke-width:1.8}
.median{stroke:var(--ink);stroke-width:2}
.predicted{opacity:.45}
.curve,.bound,.ideal{fill:none;stroke-width:2}
.bound{stroke-dasharray:6 4;opacity:.7}
.ideal{stroke:var(--soft);stroke-dasharray:1 4}
.whisker{stroke-width:1.5}
footer{color:var(--soft);font-size:.88rem;margin-top:48px}
@media (max-width:600px){main{padding:16px 14px 48px}h1{font-size:1.35rem}
dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:8px}}
@media print{main{max-width:none;padding:0}.figure,.scroll{overflow:visible}.figure svg{min-width:0!important}
section{break-inside:avoid}
h2,.see{break-after:avoid}.figure,table,.cards,.caveats{break-inside:avoid}pre{white-space:pre-wrap}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""


def style() -> str:
    """The rules. Print has the light colours, whatever the screen has."""
    light, dark = _variables(_LIGHT, _LIGHT_INK), _variables(_DARK, _DARK_INK)
    modes = f":root{{color-scheme:light dark;{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"
    return modes + _RULES + "".join(map(_worker, range(NUM_COLOURS)))


def _variables(colours: tuple[str, ...], ink: str) -> str:
    return ink + "".join(f";--w{index}:{colour}" for index, colour in enumerate(colours))


def _worker(index: int) -> str:
    name = f"w{index}"
    return f".{name}{{fill:var(--{name})}}.stroke-{name}{{stroke:var(--{name})}}.ink-{name}{{fill:var(--{name})}}\n"
