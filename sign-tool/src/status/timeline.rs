//! The stages of a boot as a picture, like that of `systemd-analyze plot`.

use std::time::Duration;

use iofs_policy::boot_record::{BootRecord, StageTime};
use svg::{
    Document,
    node::element::{Line, Rectangle, Text},
};

use super::{began, milliseconds};

const WIDTH: f64 = 960.0;
/// Left of the bars are the stages' names, above them the title and the axis.
const LEFT: f64 = 90.0;
const RIGHT: f64 = 90.0;
const TOP: f64 = 78.0;
const ROW: f64 = 26.0;
/// About as many ticks are on the axis.
const TICKS: f64 = 8.0;
const INK: &str = "#1a1a1a";
const GRID: &str = "#d8d8d8";
const BAR: &str = "#3465a4";

/// Draws it. Time begins with PID 1: the kernel takes much longer than all of it together, and stands in the title.
pub fn draw(record: &BootRecord) -> Document {
    let stages = &record.stages;
    let began = began(stages);
    let since = |nanoseconds: u64| Duration::from_nanos(nanoseconds).saturating_sub(began);
    let total = stages.last().map_or(Duration::ZERO, |last| since(last.reached_ns));
    let height = TOP + ROW * stages.len() as f64 + 20.0;
    let scale = Scale { total: total.as_secs_f64().max(1e-6), bottom: height - 20.0 };
    let document = Document::new()
        .set("viewBox", (0, 0, WIDTH, height))
        .set("width", WIDTH)
        .set("height", height)
        .set("font-family", "sans-serif")
        .set("font-size", 12)
        .add(Rectangle::new().set("width", "100%").set("height", "100%").set("fill", "white"));
    let document = heading(document, record, began, total);
    let document = scale.ticks().into_iter().fold(document, |document, tick| scale.draw(document, tick));
    stages.iter().enumerate().fold(document, |document, (row, stage)| {
        let start = since(stage.reached_ns.saturating_sub(stage.took_ns));
        draw_stage(document, &scale, row, stage, start)
    })
}

fn heading(document: Document, record: &BootRecord, began: Duration, total: Duration) -> Document {
    let BootRecord { image_id, image_version, kernel_release, .. } = record;
    let title = format!("{image_id} {image_version} on Linux {kernel_release}");
    let (kernel, init) = (milliseconds(began), milliseconds(total));
    let times = format!("{kernel} ms of kernel, then {init} ms of verify-init {}", record.verify_init);
    document.add(label(&title, 12.0, 22.0).set("font-size", 16)).add(label(&times, 12.0, 42.0))
}

fn draw_stage(document: Document, scale: &Scale, row: usize, stage: &StageTime, start: Duration) -> Document {
    let took = Duration::from_nanos(stage.took_ns);
    let (top, left) = (TOP + ROW * row as f64, scale.x(start.as_secs_f64()));
    // What takes no time is seen all the same.
    let width = (scale.x((start + took).as_secs_f64()) - left).max(1.0);
    let bar = Rectangle::new()
        .set("x", rounded(left))
        .set("y", top + 4.0)
        .set("width", rounded(width))
        .set("height", ROW - 8.0)
        .set("fill", BAR);
    let time = format!("{} ms", milliseconds(took));
    document.add(label(stage.stage.name(), 12.0, top + 17.0)).add(bar).add(label(
        &time,
        rounded(left + width + 6.0),
        top + 17.0,
    ))
}

fn label(text: &str, x: f64, y: f64) -> Text {
    Text::new(text).set("x", x).set("y", y).set("fill", INK)
}

/// So that the file says no more digits than a picture has.
fn rounded(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

/// From seconds since PID 1 began to the place on the picture.
struct Scale {
    total: f64,
    bottom: f64,
}

impl Scale {
    fn x(&self, seconds: f64) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * seconds / self.total
    }

    /// At round numbers: 1, 2 or 5 of a power of ten apart.
    fn ticks(&self) -> Vec<f64> {
        let rough = self.total / TICKS;
        let power = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|of| of * power).find(|step| *step >= rough).unwrap_or(rough);
        (0..=(self.total / step) as u32).map(|tick| f64::from(tick) * step).collect()
    }

    fn draw(&self, document: Document, seconds: f64) -> Document {
        let x = rounded(self.x(seconds));
        let line =
            Line::new().set("x1", x).set("x2", x).set("y1", TOP - 8.0).set("y2", self.bottom).set("stroke", GRID);
        let milliseconds = rounded(seconds * 1e6) / 1000.0;
        let number = label(&format!("{milliseconds} ms"), x, TOP - 14.0).set("text-anchor", "middle");
        document.add(line).add(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::record;

    #[test]
    fn each_stage_has_a_bar_as_long_as_it_took() {
        let picture = draw(&record()).to_string();
        assert!(picture.starts_with("<svg "), "{picture}");
        for part in
            ["org.example.device 7 on Linux 6.12.1", "1000.0 ms of kernel, then 19.0 ms", "\nstarted\n", "\n16.0 ms\n"]
        {
            assert!(picture.contains(part), "{part}\n{picture}");
        }
        // 780 pixels are 19 ms.
        let widths: Vec<&str> = picture.split("width=\"").skip(3).filter_map(|rest| rest.split('"').next()).collect();
        assert!(["41.1", "82.1", "656.8"].iter().all(|width| widths.contains(width)), "{widths:?}\n{picture}");
        assert!(picture.contains("\n10 ms\n") && picture.contains("\n0 ms\n"), "{picture}");
    }

    #[test]
    fn what_a_record_says_cannot_add_elements_to_the_picture() {
        let odd = BootRecord { image_version: "<script>&\"".to_owned(), ..record() };
        let picture = draw(&odd).to_string();
        assert!(!picture.contains("<script"), "{picture}");
        let none = BootRecord { stages: Vec::new(), ..record() };
        assert!(draw(&none).to_string().contains("0.0 ms of kernel"));
    }
}
