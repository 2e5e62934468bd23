//! What a root tree says of itself, for defaults.

use erofs_image::Tree;
use iofs_policy::manifest::{ImageId, ImageIdentity, ImageVersion};

/// The larger part of a real file is a few hundred bytes; nothing else of a tree is read here.
const MAX_SIZE: usize = 64 * 1024;

/// The fields of an os-release file that name an image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OsRelease {
    id: Option<String>,
    version: Option<String>,
    /// The whole file, where there is one.
    text: Option<String>,
}

impl OsRelease {
    /// The file as it is measured and shown of a sealed image: the tree's, and which image and version that is. Boot loaders sort
    /// unified kernel images by these two.
    pub fn sealed(&self, image: &ImageIdentity) -> String {
        let others = |line: &&str| !["IMAGE_ID=", "IMAGE_VERSION="].iter().any(|field| line.starts_with(field));
        let mut text: String =
            self.text.as_deref().unwrap_or_default().lines().filter(others).map(|line| format!("{line}\n")).collect();
        text.push_str(&format!("IMAGE_ID=\"{}\"\nIMAGE_VERSION=\"{}\"\n", image.id, image.version));
        text
    }

    /// Reads `etc/os-release` or `usr/lib/os-release` of a tree. Links are followed inside the tree only.
    pub fn read(tree: &Tree) -> Self {
        [&b"etc/os-release"[..], b"usr/lib/os-release"]
            .into_iter()
            .find_map(|path| String::from_utf8(tree.read_file(path, MAX_SIZE)?).ok())
            .map_or_else(Self::default, |text| Self { text: Some(text.clone()), ..Self::parse(&text) })
    }

    /// Parses the file's text (os-release(5)). What is malformed is passed over, since it only gives defaults.
    pub fn parse(text: &str) -> Self {
        let field = |name: &str| {
            text.lines()
                .filter_map(|line| line.strip_prefix(name)?.strip_prefix('='))
                .map(|value| value.trim().trim_matches(['"', '\'']).to_owned())
                .rfind(|value| !value.is_empty())
        };
        Self {
            id: field("IMAGE_ID").or_else(|| field("ID")),
            version: field("IMAGE_VERSION").or_else(|| field("VERSION_ID")),
            text: None,
        }
    }

    /// The image id, `root` where the tree does not tell.
    pub fn image_id(&self) -> ImageId {
        let told = self.id.as_deref().and_then(|id| id.parse().ok());
        told.unwrap_or_else(|| "root".parse().expect("the default is valid"))
    }

    /// The image version, `1` where the tree does not tell.
    pub fn image_version(&self) -> ImageVersion {
        let told = self.version.as_deref().and_then(|version| version.parse().ok());
        told.unwrap_or_else(|| "1".parse().expect("the default is valid"))
    }
}

#[cfg(test)]
mod tests {
    use iofs_policy::manifest::{Architecture, Role, RollbackIndex};

    use super::*;

    #[test]
    fn the_image_fields_go_before_the_distribution_s() {
        let debian = OsRelease::parse("PRETTY_NAME=\"Debian\"\nID=debian\nVERSION_ID=\"13\"\n");
        assert_eq!((debian.image_id().as_str(), debian.image_version().as_str()), ("debian", "13"));
        let image = OsRelease::parse("ID=debian\nIMAGE_ID='car'\nIMAGE_VERSION=7\nVERSION_ID=13");
        assert_eq!((image.image_id().as_str(), image.image_version().as_str()), ("car", "7"));
        let sealed = ImageIdentity {
            id: "car".parse().unwrap(),
            version: "8".parse().unwrap(),
            rollback_index: RollbackIndex(1),
            role: Role::Root,
            architecture: Architecture::X86_64,
            debug: false,
        };
        let tree = OsRelease { text: Some("ID=debian\nIMAGE_VERSION=7\nVERSION_ID=13".to_owned()), ..image };
        assert_eq!(tree.sealed(&sealed), "ID=debian\nVERSION_ID=13\nIMAGE_ID=\"car\"\nIMAGE_VERSION=\"8\"\n");
        assert_eq!(OsRelease::default().sealed(&sealed), "IMAGE_ID=\"car\"\nIMAGE_VERSION=\"8\"\n");
        let nothing = OsRelease::parse("ID=Not Valid\n");
        assert_eq!((nothing.image_id().as_str(), nothing.image_version().as_str()), ("root", "1"));
    }
}
