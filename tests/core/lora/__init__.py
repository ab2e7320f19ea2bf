"""Tests of core/lora."""
