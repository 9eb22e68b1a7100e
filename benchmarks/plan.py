"""wip"""
from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def build(setting):
    import torch
    from saccade import config, runtime
    from saccade.architectures import configured
    from saccade.contracts import Record
    from saccade.data.loader import ImageCache, with_statistics
    from saccade.recipes import sections_for
    from saccade.train.resolve import resolve, resolve_length
    from saccade.train.run import inherit, model_options
    import os
    if not os.environ.get("NOKEEP"):
        runtime.keep_freed_memory()
    torch.set_num_threads(1)
    device = torch.device("cpu")
    batch, size, axes = setting["batch"], setting["size"], setting.get("axes", 2)
    count, channels = 2 * batch, setting.get("channels", 3 if axes == 2 else 1)
    px = setting.get("image_px", round(1.5 * size))
    shape = (channels, *(px,) * axes)
    flat = np.random.default_rng(0).integers(0, 256, count * int(np.prod(shape)), dtype=np.uint8)
    cache = ImageCache(flat, np.array([shape] * count), np.arange(count) * int(np.prod(shape)),
                       [Record(str(i), label=str(i % 2)) for i in range(count)], [str(i) for i in range(count)],
                       np.array([shape[1:]] * count), [], 0.0, 255.0)
    cache = with_statistics(cache).numbered(("0", "1"))
    method = setting.get("method", "dino")
    sections = sections_for(method, "microscopy")
    pairs = {"model.backbone": setting["backbone"], "model.size_px": size, "train.batch": batch, "train.steps": 1000,
             "train.precision": setting.get("precision", "fp32"), "data.cache_px": px} | setting.get("set", {})
    sections = config.override(sections, pairs)
    sections = inherit(sections, cache)
    sections = resolve(sections, images=count, channels=channels, device=device)
    sections = resolve_length(sections, count, ("0", "1"))
    network = configured(setting["backbone"], channels=channels, size_px=size, options=model_options(sections["model"]), **({"axes": axes} if axes == 3 else {}))
    return sections, cache, network, device


def child(setting, mode):
    import torch
    sections, cache, network, device = build(setting)
    from saccade.train.loop import Plan, learn
    from saccade.train.optim import make_optimizer
    from saccade.train.run import make_method
    from saccade.data.loader import input_spec
    spec = input_spec(cache, setting["size"], grey=False)
    base = rss()
    method = make_method(sections, cache.channels, device)
    optimizer = make_optimizer(method, sections["optim"], device)
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(Path(folder), sections["train"], sections["optim"], sections["views"], spec, device)
        if mode == "flops":
            from torch.utils.flop_counter import FlopCounterMode
            aten = torch.ops.aten
            def f(q, k, v, *a, out_shape=None, **kw):
                b, h, n, d = q
                return 4 * b * h * n * k[2] * d
            def g(gr, q, k, v, *a, out_shape=None, **kw):
                b, h, n, d = q
                return 10 * b * h * n * k[2] * d
            own = {aten._scaled_dot_product_flash_attention_for_cpu: f, aten._scaled_dot_product_flash_attention_for_cpu_backward: g}
            with FlopCounterMode(display=False, custom_mapping=own) as counter:
                learn(plan, method, optimizer, cache, 0)
            print(json.dumps({"flops": counter.get_total_flops()}))
            return
        if mode == "live":
            from torch.profiler import profile, ProfilerActivity
            learn(plan, method, optimizer, cache, 0)
            static = sum(p.numel() * 4 for p in method.parameters()) + 8 * sum(p.numel() for _, p in method.trainable())
            grads = sum(p.numel() * 4 for _, p in method.trainable())
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
                learn(plan, method, optimizer, cache, 1)
            live = peak = 0
            for e in sorted((e for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()):
                live += e.nbytes()
                peak = max(peak, live)
            print(json.dumps({"live": peak + grads + static, "static": static}))
            return
        seconds = []
        for step in range(setting.get("steps", 4)):
            began = time.perf_counter()
            learn(plan, method, optimizer, cache, step)
            seconds.append(time.perf_counter() - began)
        print(json.dumps({"base": base, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "seconds": seconds}))


def rss():
    for line in open("/proc/self/status"):
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024


def run(setting, mode):
    done = subprocess.run([sys.executable, __file__, "--child", json.dumps(setting), mode], capture_output=True, text=True)
    if done.returncode:
        return {"error": done.stderr[-600:]}
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    if sys.argv[1] == "--child":
        child(json.loads(sys.argv[2]), sys.argv[3])
        sys.exit()
    from saccade.pricing.run import price
    from saccade.train.afford import workload
    modes = sys.argv[2].split(",")
    for setting in json.loads(sys.argv[1]):
        sections, cache, network, device = build(setting)
        p = price(workload(sections, network, device))
        text = f"{setting['backbone']:32s} {setting.get('method','dino'):10s} {setting['size']:4d} x{setting['batch']:3d} {setting.get('precision','fp32')} "
        for mode in modes:
            r = run(setting, mode)
            if "error" in r:
                text += r["error"]
            elif mode == "flops":
                text += f" flops {r['flops']/1e9:9.2f} G {p.total_flops/r['flops']-1:+.4f}"
            elif mode == "live":
                text += f" live {r['live']/2**20:8.1f} {p.peak/2**20:8.1f} {p.peak/r['live']-1:+.3f}"
            else:
                text += f" rss {r['peak']/2**20:7.0f} base {r['base']/2**20:5.0f} own {(r['peak']-r['base'])/2**20:7.0f} {p.peak/2**20:7.0f} {p.peak/(r['peak']-r['base'])-1:+.3f} all {(p.peak+r['base'])/r['peak']-1:+.3f} s {r['seconds']}"
        print(text, flush=True)
        if "-v" in sys.argv:
            print({k: round(v/2**20, 1) for k, v in p.memory.items()}, {k: round(v/1e9, 2) for k, v in p.flops.items()})
