"""How the page looks, on screens of any width; and what stands in its place until it is there."""

CSS = """
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; width: 100% !important; }
.gradio-container > main, .gradio-container .wrap { width: 100%; max-width: 100%; }
.gradio-container h1 { font-size: 1.5rem; margin: 0; }
.pictures { display: grid; gap: 12px; grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)); }
.pictures.strip { grid-template-columns: repeat(auto-fill, minmax(112px, 1fr)); }
.pictures.pair { grid-template-columns: repeat(auto-fill, minmax(180px, 1fr)); }
.pictures figure { margin: 0; min-width: 0; }
.pictures img, .pictures .to-come { width: 100%; border-radius: 8px; display: block; box-sizing: border-box; }
.pictures img { border: 1px solid var(--border-color-primary); }
.pictures .to-come { aspect-ratio: 1; background: var(--block-border-color); opacity: 0.5; }
.pictures img.sharp { image-rendering: pixelated; }
.pictures figcaption { font-size: 0.8rem; padding: 2px 4px; display: flex; justify-content: space-between; }
.pictures a, .pictures a:visited { text-decoration: underline; padding: 2px 6px; }
.status { margin: 4px 0; min-height: 1.6em; white-space: pre-line; }
.status progress { width: 120px; vertical-align: middle; }
.wide { overflow-x: auto; max-width: 100%; margin: 8px 0 16px; }
.wide table, .wide td, .wide th, .wide tr, .bars, .bars td, .bars th, .bars tr { border: 0 !important; }
.wide table, .bars { border-collapse: collapse; font-size: 0.85rem; }
.wide caption, .bars caption { text-align: left; padding: 4px 0; font-weight: 600; }
.wide th { font-weight: 400; padding: 2px 8px; white-space: nowrap; }
.wide td { text-align: right; padding: 2px 8px; min-width: 2.6em; }
.bars { width: 100%; max-width: 560px; }
.bars th { font-weight: 400; text-align: left; width: 30%; padding: 2px 8px 2px 0; }
.bars td { padding: 2px 0; }
.bars td:last-child { width: 5em; text-align: right; white-space: nowrap; }
.bars td div { background: var(--primary-500, #6366f1); height: 1em; border-radius: 3px; min-width: 1px; }
"""

STARTING = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>mvar is starting</title><link rel="icon" href="data:,"></head>
<body style="font-family: system-ui, sans-serif; margin: 4rem auto; max-width: 30rem; padding: 0 1rem">
<h1>mvar is starting</h1><p role="status">The page will be here in a few seconds; this one reloads itself.</p>
</body></html>
"""
