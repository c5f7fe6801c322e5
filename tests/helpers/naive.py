"""The features of one event, written as plainly as possible: the truth that the kernels are held against.

Follows the text of the documentation, object by object; shares no code with hepdask.
"""

from __future__ import annotations

import math

CONE = 0.3


def wrapped(angle):
    return math.remainder(angle, 2 * math.pi)


def delta_r(a, b):
    return math.hypot(a["eta"] - b["eta"], wrapped(a["phi"] - b["phi"]))


def cone_sum(thing, candidates, leave_out=lambda candidate: False):
    near = [c["pt"] for c in candidates if delta_r(thing, c) < CONE and not leave_out(c)]
    return math.fsum(near) / thing["pt"]


def published_cone_sum(thing, candidates):
    """No wrapping of phi within one turn, and nothing left out."""
    near = [
        c["pt"] for c in candidates if math.hypot(c["eta"] - thing["eta"], c["phi"] - thing["phi"]) < CONE
    ]
    return math.fsum(near) / thing["pt"]


def corrected_lepton(event, tracks, photons, neutrals):
    best = None
    for flavour in ("electrons", "muons"):
        for lepton in event[flavour]:
            if lepton["pt"] <= 23:
                continue
            iso = (
                cone_sum(lepton, tracks, lambda t, lepton=lepton: delta_r(lepton, t) <= 1e-4),
                cone_sum(lepton, photons),
                cone_sum(lepton, neutrals),
            )
            if sum(iso) < 0.45 and (best is None or lepton["pt"] > best["pt"]):
                best = dict(lepton, iso=iso, kind="isEle" if flavour == "electrons" else "isMu")
    return best


def published_lepton(event, tracks, photons, neutrals):
    if not (tracks and photons and neutrals):
        return None
    found = []
    for flavour in ("electrons", "muons"):
        for lepton in event[flavour]:
            iso = (
                published_cone_sum(lepton, tracks) - 1,
                published_cone_sum(lepton, photons),
                published_cone_sum(lepton, neutrals),
            )
            if lepton["pt"] > 23 and sum(iso) < 0.45:
                found.append(dict(lepton, iso=iso, kind="isEle" if flavour == "electrons" else "isMu"))
                break
    if len(found) == 2:
        return found[0] if found[0]["eta"] > found[1]["eta"] else found[1]
    return found[0] if found else None


def event_features(event, caps=(450, 150, 200), published=False):
    """Return None where the event is rejected, else the high-level features and the particles.

    The particles stand in sequence order, each with its place in the list.
    """
    tracks = [dict(t) for t in event["tracks"] if t["pt"] > 0.5]
    photons = [dict(p) for p in event["photons"] if p["pt"] > 1.0]
    neutrals = [dict(n) for n in event["neutrals"] if n["pt"] > 1.0]
    best = (published_lepton if published else corrected_lepton)(event, tracks, photons, neutrals)
    if best is None:
        return None

    particles = []
    for kind, objects, cap in (
        ("isChHad", [t for t in tracks if delta_r(best, t) > 1e-4], caps[0]),
        ("isGamma", photons, caps[1]),
        ("isNeuHad", neutrals, caps[2]),
    ):
        kept = objects[:cap] if published else sorted(objects, key=lambda o: -o["pt"])[:cap]
        for thing in [o for o in objects if any(o is k for k in kept)]:
            if published:
                iso = [published_cone_sum(thing, candidates) for candidates in (tracks, photons, neutrals)]
                iso[0] -= 1
            else:
                iso = [
                    cone_sum(thing, candidates, lambda c, thing=thing: c is thing)
                    for candidates in (tracks, photons, neutrals)
                ]
            if published and "pid" in thing:
                thing["charge"] = (thing["pid"] > 0) - (thing["pid"] < 0)
            particles.append(dict(thing, iso=iso, kind=kind))
    listed = [(place + 1, p) for place, p in enumerate(particles)]
    listed.sort(key=lambda item: -delta_r(best, item[1]))
    listed.append((0, best))

    jets = [j for j in event["jets"] if j["pt"] > 30 and abs(j["eta"]) < 2.6]
    met = event["met"]
    mt_squared = 2 * met["pt"] * best["pt"] * (1 - math.cos(best["phi"] - met["phi"]))
    high_level = {
        "HT": math.fsum(j["pt"] for j in jets),
        "MET": met["pt"],
        "phiMET": met["phi"],
        "MT": mt_squared if published else math.sqrt(max(0.0, mt_squared)),
        "nJets": len(jets),
        "nBjets": sum(j["btag"] > 0 for j in jets),
        "LepPt": best["pt"],
        "LepEta": best["eta"],
        "LepPhi": best["phi"],
        "LepIsoCh": best["iso"][0],
        "LepIsoGamma": best["iso"][1],
        "LepIsoNeu": best["iso"][2],
        "LepCharge": best["charge"],
        "LepIsEle": float(best["kind"] == "isEle"),
    }
    return high_level, [(particle_features(p), place) for place, p in listed]


def particle_features(p):
    kinds = ("isChHad", "isNeuHad", "isGamma", "isEle", "isMu")
    return {
        "Energy": p["pt"] * math.cosh(p["eta"]),
        "Px": p["pt"] * math.cos(p["phi"]),
        "Py": p["pt"] * math.sin(p["phi"]),
        "Pz": p["pt"] * math.sinh(p["eta"]),
        "Pt": p["pt"],
        "Eta": p["eta"],
        "Phi": p["phi"],
        "vtxX": p.get("x", 0),
        "vtxY": p.get("y", 0),
        "vtxZ": p.get("z", 0),
        "ChPFIso": p["iso"][0],
        "GammaPFIso": p["iso"][1],
        "NeuPFIso": p["iso"][2],
        **{kind: float(kind == p["kind"]) for kind in kinds},
        "Charge": p.get("charge", 0),
    }
