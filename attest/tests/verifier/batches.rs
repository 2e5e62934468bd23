//! Many quotes at once.

use std::{io::Cursor, num::NonZeroUsize};

use iofs_attest::batch::{Config, Input, MAX_LINE, verify_jsonl, verify_line};
use iofs_policy::hex;
use serde_json::Value;

use crate::support::*;

fn config() -> Config {
    let Verifier { references, policy, .. } = Verifier::new(SHA256, vec![reference("13.2-4", |_| {})]);
    Config { references, policy }
}

fn input(nonce: &[u8]) -> Vec<u8> {
    let machine = Machine::booted(SHA256, &reference("13.2-4", |_| {}));
    let evidence = machine.evidence(&Quoted::new(SHA256));
    let input = Input { device: device(SHA256), nonce: hex::encode(nonce), evidence };
    let mut line = serde_json::to_vec(&input).unwrap();
    line.push(b'\n');
    line
}

fn run(input: Vec<u8>, threads: usize) -> Vec<Value> {
    let mut output = Vec::new();
    verify_jsonl(Cursor::new(input), &mut output, &config(), NonZeroUsize::new(threads).unwrap()).unwrap();
    let lines = output.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_slice(line).unwrap()).collect()
}

#[test]
fn verdicts_come_in_the_order_of_their_lines() {
    let (good, bad) = (input(NONCE), input(&[0; 32]));
    let lines: Vec<u8> = (0..60).flat_map(|number| if number % 3 == 0 { bad.clone() } else { good.clone() }).collect();
    for threads in [1, 2, 5] {
        let verdicts = run(lines.clone(), threads);
        assert_eq!(verdicts.len(), 60);
        for (number, verdict) in verdicts.iter().enumerate() {
            assert_eq!(verdict["line"], number + 1);
            assert_eq!(verdict["device"], "gateway-1");
            assert_eq!(verdict["verdict"], if number % 3 == 0 { "refused" } else { "attested" });
        }
        assert_eq!(verdicts[0]["reason"], "nonce");
        assert_eq!(verdicts[1]["attested"]["release"], "org.example.gateway 13.2-4");
    }
}

#[test]
fn lines_that_are_none_are_refused_and_the_rest_goes_on() {
    let mut lines = b"{}\n\nnot json\n".to_vec();
    lines.extend(vec![b'x'; MAX_LINE + 10]);
    lines.push(b'\n');
    lines.extend(input(NONCE));
    lines.extend(b"\xff\xfe");
    let verdicts = run(lines, 2);
    let numbers: Vec<u64> = verdicts.iter().map(|verdict| verdict["line"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [1, 3, 4, 5, 6]);
    let words: Vec<&str> = verdicts.iter().map(|verdict| verdict["verdict"].as_str().unwrap()).collect();
    assert_eq!(words, ["refused", "refused", "refused", "attested", "refused"]);
    assert_eq!(verdicts[2]["message"], format!("line: expected at most {MAX_LINE} bytes, found more"));
    assert_eq!(verdicts[2]["reason"], "input");
}

#[test]
fn a_nonce_that_is_none_is_refused() {
    let mut line = String::from_utf8(input(NONCE)).unwrap();
    line = line.replace(&hex::encode(NONCE), "xyz0");
    let verdict = serde_json::to_value(verify_line(&config(), 7, line.as_bytes())).unwrap();
    assert_eq!(verdict["line"], 7);
    assert_eq!(verdict["message"], "nonce: expected lower-case hexadecimal digits, found 'x' at position 0");
}

#[test]
fn a_writer_that_fails_ends_the_run() {
    struct Broken;
    impl std::io::Write for Broken {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let lines: Vec<u8> = (0..50).flat_map(|_| input(NONCE)).collect();
    let two = NonZeroUsize::new(2).unwrap();
    let error = verify_jsonl(Cursor::new(lines), Broken, &config(), two).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
}
