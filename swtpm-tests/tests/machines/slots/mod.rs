//! Two slots on a disk: real kernels choose, try, fall back and refuse.

mod fallback;
mod files;
mod keys;
mod overlay_upper;
mod rollback;
mod support;
mod systemd_boot;
mod updates;
