"""Datasets: one small file each, all giving the same Record."""
