"""Single neurons of an MLP: those that hold a fact (KN), and those that are added for one (T-Patcher, CaliNet).

May import ``errata.methods``' shared files and what lies below ``methods``; never another family.
"""
