#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    iofs_fuzz_bodies::erofs_files(data);
});
