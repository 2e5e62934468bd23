# Names for what the scripts do. Each script's header says more; `make help` shows the way in.

export PATH := $(PATH):$(HOME)/.cargo/bin:/usr/sbin:/sbin
.DEFAULT_GOAL := help
.PHONY: help demo build check test test-installed cache bench bench-quick sizes audit fuzz clean

help:  ## this list
	@echo 'A first look:  make demo   seals a Debian root, boots it, and tries to tamper with it'
	@echo
	@sed -n 's/^\([a-z-]*\):  ## /  make \1\t/p' Makefile | expand -t 24

demo:  ## install what is missing, seal a root, boot it, then boot two tampered copies
	@scripts/install-deps demo
	@scripts/demo

build:  ## build verify-init (static, small) and iofs-sign
	@scripts/build-boot

check:  ## format, lints and the tests that take seconds
	@scripts/check

test:  ## everything but test-installed, with virtual machines
	@scripts/test

test-installed:  ## install on whole Debians, boot them by their own loaders, upgrade their kernels, and go back
	@scripts/install-deps test
	@scripts/test-installed

cache:  ## download kernels and stubs, and make the roots that demo and tests boot
	@scripts/fill-cache

bench:  ## measure sizes and times, and compare with dracut
	@scripts/install-deps bench
	@scripts/bench

bench-quick:  ## run what make test runs of it: engines, manifests, headers, logs and quotes, each once and compared
	@cargo test --quiet --locked --package iofs-sign --bench chain --package iofs-attest --bench verify

sizes:  ## print how many bytes a boot reads before its root
	@scripts/size-report

audit:  ## licences, sources and advisories of all dependencies
	@scripts/audit

fuzz:  ## run each fuzz target for a minute
	@scripts/fuzz

clean:  ## remove what was built; cache/ stays
	cargo clean
