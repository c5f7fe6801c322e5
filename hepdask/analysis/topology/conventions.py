"""The two conventions, as named decisions that the kernels ask for.

`CORRECTED` is what physics wants and the default. `REFERENCE` gives the numbers of the published pipeline
(the code that goes with Migliorini et al. 2019, github.com/cerndb/SparkDLTrigger), its oddities included.
"""

from __future__ import annotations

from typing import NamedTuple


class Convention(NamedTuple):
    """What the published code and the corrected one do differently.

    Attributes
    ----------
    wraps_cone : bool
        Differences in phi are wrapped to [-pi, pi] before they are compared with the cone. The published code
        wraps only what lies beyond 2 pi, so a cone across phi = pi is cut.
    leaves_itself_out : bool
        An object is left out of the sum over its own kind (a lepton: its track). The published code instead
        subtracts 1, the object's own share, from every charged isolation, also of photons and neutral hadrons,
        and leaves everything in the other two.
    hardest_leads : bool
        The hardest passing lepton leads, whatever its flavour. In the published code it is the first passing one
        in stored order within a flavour, and of an electron and a muon the one with the larger eta.
    hardest_fill_up : bool
        Where there are more candidates of a kind than are kept, the hardest are. In the published code it is the
        first in stored order.
    needs_every_kind : bool
        Events without a candidate of one of the three kinds are dropped, as the published code does.
    signs_by_pid : bool
        The charge of a track is the sign of its PID, as in the published code, which gives electrons and muons the
        wrong one; otherwise it is the charge.
    roots_mt : bool
        MT is the square root of 2 MET pT (1 - cos dphi). The published code leaves the root out.
    scales_by_event : bool
        The sequence is standardised event by event, over all rows, with the zeros that fill it up sorted among
        the particles, as the published code does; otherwise per feature over the training split's particles.
    """

    wraps_cone: bool
    leaves_itself_out: bool
    hardest_leads: bool
    hardest_fill_up: bool
    needs_every_kind: bool
    signs_by_pid: bool
    roots_mt: bool
    scales_by_event: bool


CORRECTED = Convention(
    wraps_cone=True,
    leaves_itself_out=True,
    hardest_leads=True,
    hardest_fill_up=True,
    needs_every_kind=False,
    signs_by_pid=False,
    roots_mt=True,
    scales_by_event=False,
)

REFERENCE = Convention(
    wraps_cone=False,
    leaves_itself_out=False,
    hardest_leads=False,
    hardest_fill_up=False,
    needs_every_kind=True,
    signs_by_pid=True,
    roots_mt=False,
    scales_by_event=True,
)

CONVENTIONS = {"corrected": CORRECTED, "reference": REFERENCE}
