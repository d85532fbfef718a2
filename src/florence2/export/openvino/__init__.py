"""The graphs of Florence-2 as OpenVINO's intermediate representation."""
