"""What pages without scripts share: colours of lines, and the style sheet."""

COLOURS = ("#2266b3", "#c25a12", "#0f7f68", "#8348ad", "#9a7400", "#b03060", "#4a7d1e", "#5a6472")
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#222;background:#fafaf7;margin:0 auto;max-width:1080px
;padding:24px}h1{font-size:24px}h2{font-size:18px;margin-top:36px}table{border-collapse:collapse}
td,th{padding:3px 14px 3px 0;border-bottom:1px solid #e3e3de}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(330px,1fr));gap:18px}
figure{margin:0;background:#fff;border:1px solid #e3e3de;border-radius:6px;padding:10px}
figcaption{font-size:13px;color:#445}svg text{font:11px system-ui,sans-serif;fill:#667}
pre{white-space:pre-wrap;font-size:12px}
"""
