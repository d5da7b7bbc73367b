"""The scale-wise autoregressive network: token maps from coarser ones and a class."""
