use proptest::prelude::*;

use super::*;

/// A PE32+ image with one section, and room for `room` entries in its section table.
pub(crate) fn image(room: usize) -> Vec<u8> {
    const PE: usize = 0x40;
    let optional = PE + COFF_SIZE;
    let table = optional + 240;
    let headers = (table + room.max(1) * ENTRY_SIZE).next_multiple_of(512);
    let mut image = vec![0; headers + 512];
    let mut set = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    set(0, b"MZ");
    set(PE_OFFSET, &[PE as u8]);
    set(PE, b"PE\0\0\x64\x86\x01\0");
    set(PE + 20, &240_u16.to_le_bytes());
    set(optional, &[0x0b, 0x02]);
    for (at, value) in [(32, 4096), (36, 512), (56, 0x3000), (60, headers as u32), (108, 16)] {
        set(optional + at, &u32::to_le_bytes(value));
    }
    set(table, b".text\0\0\0");
    for (at, value) in [(8, 0x1234), (12, 0x1000), (16, 512), (20, headers as u32)] {
        set(table + at, &u32::to_le_bytes(value));
    }
    image[headers..].fill(0xcc);
    image
}

fn sections() -> Vec<(String, Vec<u8>)> {
    (0..12_u8).map(|index| (format!(".s{index}"), vec![index; usize::from(index) * 300 + 1])).collect()
}

#[test]
fn appended_sections_are_read_back_in_pages_of_their_own() {
    for room in [1, 20] {
        let (before, sections) = (image(room), sections());
        let new: Vec<_> = sections.iter().map(|(name, contents)| NewSection { name, contents }).collect();
        let written = append(&before, &new).unwrap();
        assert_eq!(written, append(&before, &new).unwrap());
        let headers = Headers::parse(&written).unwrap();
        assert_eq!(headers.sections.len(), 13);
        assert_eq!(headers.find(".text").unwrap().raw.len(), 512);
        assert!(written[headers.find(".text").unwrap().raw.clone()].iter().all(|byte| *byte == 0xcc));
        let mut end = 0;
        for (section, (name, contents)) in headers.sections[1..].iter().zip(&sections) {
            assert_eq!((&section.name, section.contents(&written)), (name, &contents[..]));
            assert!(section.address % 4096 == 0 && section.address >= end && section.raw.start % 512 == 0);
            end = section.address + section.size;
        }
        let image_size = number(&written, headers.pe + COFF_SIZE + 56, 4).unwrap();
        assert_eq!(image_size, u64::from(end.next_multiple_of(4096)));
    }
}

#[test]
fn what_cannot_be_appended_is_named() {
    let one = |name| NewSection { name, contents: b"x" };
    for (new, expected) in [
        (vec![one(".text")], "section name: expected one that is new, found .text"),
        (vec![one(".a"), one(".a")], "section name: expected one that is new, found .a"),
        (vec![one(".longername")], "section name: expected at most eight bytes, found .longername"),
    ] {
        assert_eq!(append(&image(1), &new).unwrap_err().to_string(), expected);
    }
    let mut signed = image(1);
    let at = 0x40 + COFF_SIZE + CERTIFICATES;
    signed[at] = 8;
    signed[at + 4] = 8;
    assert!(append(&signed, &[]).unwrap_err().to_string().starts_with("certificate table: expected none"));
}

#[test]
fn a_cut_image_is_an_error() {
    let whole = image(1);
    for end in 0..whole.len() {
        assert!(Headers::parse(&whole[..end]).is_err(), "{end}");
    }
}

proptest! {
    #[test]
    fn changed_headers_are_no_panic(changes in prop::collection::vec((0..600_usize, any::<u8>()), 1..8)) {
        let mut image = image(1);
        for (at, byte) in changes {
            image[at] = byte;
        }
        if let Ok(headers) = Headers::parse(&image) {
            headers.sections.iter().for_each(|section| assert!(section.contents(&image).len() <= image.len()));
        }
        let _ = append(&image, &[NewSection { name: ".new", contents: b"contents" }]);
    }
}
