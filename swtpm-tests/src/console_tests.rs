use std::os::unix::net::UnixStream;

use super::*;

const SOON: Duration = Duration::from_secs(20);
const AT_ONCE: Duration = Duration::from_millis(50);

/// A console, the end that the guest would write to, and what keeps the log's folder.
fn console() -> (Console, UnixStream, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let (guest, host) = UnixStream::pair().unwrap();
    let console = Console::reading(host, &folder.path().join("console.log")).unwrap();
    (console, guest, folder)
}

fn clean(pieces: &[&[u8]]) -> (Vec<String>, String) {
    let mut cleaner = Cleaner::default();
    let lines = pieces.iter().flat_map(|piece| cleaner.push(piece)).collect();
    (lines, cleaner.partial())
}

#[test]
fn colours_and_carriage_returns_are_stripped_wherever_the_stream_is_cut() {
    let stream = b"\x1b[0;32m  OK  \x1b[0m done\r\n\x1b]0;title\x07\x1b(B\x1bctext\r\nunfinished";
    for cut in 0..stream.len() {
        let (before, after) = stream.split_at(cut);
        let (lines, partial) = clean(&[before, after]);
        assert_eq!(lines, ["  OK   done", "text"], "cut at {cut}");
        assert_eq!(partial, "unfinished");
    }
}

#[test]
fn bytes_that_are_not_utf8_are_replaced() {
    assert_eq!(clean(&[b"a\xffb\n"]).0, ["a\u{fffd}b"]);
}

#[test]
fn a_record_that_the_kernel_printed_into_a_line_is_a_line_of_its_own() {
    let stream = b"REAL ROOT[    3.861456] EXT4-fs (vda): unmounting\r\n[    3.900000] again\r\n\r\nnext\r\n";
    let expected = ["[    3.861456] EXT4-fs (vda): unmounting", "[    3.900000] again", "REAL ROOT", "next"];
    for cut in 0..stream.len() {
        let (before, after) = stream.split_at(cut);
        assert_eq!(clean(&[before, after]), (expected.map(str::to_owned).to_vec(), String::new()), "cut at {cut}");
    }
    for whole in
        ["log [    1.234567] as a guest tells it", "array[1] and [  OK  ] done", "[    1.234567] value[2] of it"]
    {
        assert_eq!(clean(&[whole.as_bytes(), b"\n"]).0, [whole]);
    }
}

#[test]
fn an_endless_line_is_cut() {
    let (lines, partial) = clean(&[&vec![b'x'; LONGEST_LINE + 1]]);
    assert_eq!(lines.len(), 1);
    assert_eq!(partial, "x");
}

#[test]
fn an_unfinished_escape_swallows_one_line_at_most() {
    assert_eq!(clean(&[b"\x1b]lost\nkept\n"]).0, ["", "kept"]);
}

#[test]
fn an_exact_line_matches_with_and_without_the_kernels_time() {
    let line = |text: &str| ConsoleLine { at: Duration::ZERO, text: text.to_owned() };
    let ready = Line::exactly("ready");
    assert!(ready.accepts(&line("ready")));
    assert!(ready.accepts(&line("[    1.234567] ready")));
    assert!(!ready.accepts(&line("ready now")));
    assert!(!ready.accepts(&line("[  OK  ] ready")));
    assert!(Line::exactly("[  OK  ] ready").accepts(&line("[  OK  ] ready")));
}

#[test]
fn awaited_lines_must_come_in_the_order_awaited() {
    let (console, mut guest, _folder) = console();
    guest.write_all(b"first\nsecond\n").unwrap();
    console.wait_for_line(&Line::exactly("second"), SOON).unwrap();
    let error = console.wait_for_line(&Line::exactly("first"), AT_ONCE).unwrap_err();
    assert!(error.reason.contains("are over"), "{error}");
    assert!(console.find(&Line::exactly("first")).is_some());
}

#[test]
fn a_line_that_comes_later_is_waited_for() {
    let (console, mut guest, _folder) = console();
    let writer = thread::spawn(move || {
        thread::sleep(AT_ONCE);
        guest.write_all(b"la").unwrap();
        thread::sleep(AT_ONCE);
        guest.write_all(b"te\n").unwrap();
    });
    assert_eq!(console.wait_for_line(&Line::containing("at"), SOON).unwrap().text, "late");
    writer.join().unwrap();
}

#[test]
fn a_prompt_is_seen_though_its_line_is_unfinished() {
    let (console, mut guest, _folder) = console();
    guest.write_all(b"Passphrase: ").unwrap();
    console.wait_for_prompt("Passphrase: ", SOON).unwrap();
}

#[test]
fn a_text_is_seen_in_an_unfinished_line_and_in_one_that_something_else_ended() {
    let (console, mut guest, _folder) = console();
    guest.write_all(b"Passphrase: ").unwrap();
    console.wait_for_text("Passphrase: ", SOON).unwrap();
    guest.write_all(b"[    1.234567] a record\n").unwrap();
    console.wait_for_line(&Line::containing("a record"), SOON).unwrap();
    console.wait_for_text("Passphrase: ", AT_ONCE).unwrap_err();
    guest.write_all(b"Passphrase: [    2.345678] another\n").unwrap();
    console.wait_for_text("Passphrase: ", SOON).unwrap();
}

#[test]
fn waiting_fails_at_once_when_the_machine_has_ended() {
    let (console, mut guest, _folder) = console();
    guest.write_all(b"last words").unwrap();
    drop(guest);
    let error = console.wait_for_line(&Line::exactly("never"), SOON).unwrap_err();
    assert_eq!(error.reason, "the machine has ended");
    assert_eq!(error.tail, ["last words"]);
}

#[test]
fn an_error_shows_what_was_awaited_and_the_last_sixty_lines() {
    let (mut console, mut guest, _folder) = console();
    for number in 0..100 {
        writeln!(guest, "line {number}").unwrap();
    }
    drop(guest);
    console.finish();
    let error = console.wait_for_line(&Line::exactly("never"), AT_ONCE).unwrap_err();
    assert_eq!(error.tail.len(), TAIL);
    let text = error.to_string();
    assert!(text.contains(r#"the line "never""#) && text.contains("line 40\n") && text.contains("line 99"), "{text}");
    assert!(!text.contains("line 39\n"), "{text}");
}

#[test]
fn the_log_holds_every_line() {
    let (mut console, mut guest, folder) = console();
    guest.write_all(b"one\r\ntwo\r\nrest").unwrap();
    drop(guest);
    console.finish();
    let log = std::fs::read_to_string(folder.path().join("console.log")).unwrap();
    assert_eq!(log.lines().count(), 3, "{log}");
    assert!(log.lines().last().unwrap().ends_with(" rest"), "{log}");
}
