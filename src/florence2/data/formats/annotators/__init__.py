"""Readers of the formats of annotation programs: CVAT, Label Studio, CreateML, VoTT, VIA, Supervisely, Open Images."""
