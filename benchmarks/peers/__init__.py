"""The same features in the ways they are usually computed: what hepdask is compared with.

All of them follow the `corrected` convention with the published cuts and give what
`hepdask.analysis.topology` gives: 14 high-level features of an event and its particles in sequence order,
19 features each. None of them uses hepdask.
"""
