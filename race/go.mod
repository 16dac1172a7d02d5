module github.com/fivetuple/fivetuple/race

go 1.26
